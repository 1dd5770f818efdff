"""A run from its request to the choice, or on from where it was killed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lmmprune.compiler.backends.onnxruntime import target_of
from lmmprune.compiler.study.ray_cluster import check_ray
from lmmprune.compiler.study.variants import file_digest
from lmmprune.compiler.targets import targets
from lmmprune.compiler.tune.choose import KL, POINTS, Choice, Finalist, choose
from lmmprune.compiler.tune.contest import Contest
from lmmprune.compiler.tune.folder import open_run, run_identity
from lmmprune.compiler.tune.measure import Lab
from lmmprune.compiler.tune.request import TuneRequest
from lmmprune.compiler.tune.write_report import line, write_report
from lmmprune.errors import InputError, require
from lmmprune.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """What came out.

    Attributes:
        choice: What is named.
        finalists: All that were measured to the end, the fastest first.
        dropped: Candidate -> why it left the race, or was refused.
        files: What was written: ``report.html``, ``front.csv``, ``front.json``, ``front.png``.
    """

    choice: Choice
    finalists: tuple[Finalist, ...]
    dropped: Mapping[str, str]
    files: tuple[Path, ...]


def run_tune(request: TuneRequest, progress: Progress = silent) -> TuneResult:
    """Run to the end, or go on where an earlier run was killed.

    Raises:
        InputError: The budget is out of reach: the nearest candidate is named, and the report is there where there were
            finalists.
        LmmpruneError: Anything else that the user can mend; what is measured stays.
    """
    from lmmprune.models.facts import facts_of
    from lmmprune.models.source import resolve

    labelled = _labelled(request)
    measure = POINTS if labelled and request.budget.kind != "max-kl" else KL
    require("jinja2", "export")
    require("matplotlib", "export")
    template = request.template
    target_of(targets.resolve(template.target).name)
    facts = facts_of(resolve(template.model, weights=template.weights, layers=template.layers))
    about = run_identity(
        template,
        request.tuning,
        request.heldout,
        match=request.match,
        budget=request.budget,
        new_tokens=request.max_new_tokens,
        **_code(request),
    )
    if request.crew.ray is not None:
        check_ray(request.crew.ray)
    with open_run(request.output, about, force=request.force) as folder:
        lab = Lab(
            folder=folder,
            template=template,
            match=request.match if labelled else None,
            max_new_tokens=request.max_new_tokens,
            threads=request.threads,
        )
        contest = Contest(request=request, lab=lab, measure=measure, facts=facts, progress=progress)
        alive = contest.race()
        found = contest.search(alive) if request.search and request.budget.of_loss else []
        finalists = contest.finals([*alive, *found])
        choice = choose(finalists, request.budget)
        files = write_report(folder, request.budget, measure, finalists, choice, _about(request, contest.dropped))
        lab.keep_only([one.candidate for one in finalists])
    if choice.nearest is not None:
        raise InputError(
            f"{request.budget}: no finalist keeps it; the nearest is {line(choice.nearest)} (report: {files[0]})"
        )
    return TuneResult(choice=choice, finalists=tuple(finalists), dropped=contest.dropped, files=files)


def _code(request: TuneRequest) -> dict[str, str]:
    """Return what tells the user's own methods from others of their names."""
    files = {str(one.method): one.method_file for one in request.candidates}
    return {f"code of {name}": file_digest(file) for name, file in sorted(files.items()) if file is not None}


def _labelled(request: TuneRequest) -> bool:
    """Return whether right answers are known.

    Raises:
        InputError: They are asked for, and one isn't known.
    """
    without = next((one for one in (*request.tuning, *request.heldout) if not one.answers), None)
    if without is not None and request.budget.kind == "max-loss":
        raise InputError(
            f"--max-loss counts right answers, and none is known to {without.prompt!r} about '{without.picture}': give"
            " 'answer' in --data, or --max-kl NATS"
        )
    return without is None


def _about(request: TuneRequest, dropped: Mapping[str, str]) -> dict[str, str]:
    """Return what a reader of the report must know."""
    sizes = {
        name: f"{len(examples)} examples of {len({one.picture for one in examples})} pictures"
        for name, examples in (("tuned on", request.tuning), ("reported on", request.heldout))
    }
    return {
        "model": request.template.model,
        "target": request.template.target,
        "budget": str(request.budget),
        "candidates": str(len(request.candidates)),
        "left the race": str(len(dropped)),
        **sizes,
        "timed rounds": str(request.rounds),
    }
