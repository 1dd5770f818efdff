"""A study from its request to its report: what is finished stays, the rest is run, timed, put together and written."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmmprune.compiler.backends.onnxruntime import target_of
from lmmprune.compiler.data.calibration import load_calibration
from lmmprune.compiler.data.questions import Question, load_examples, one_picture_each
from lmmprune.compiler.study.cell_result import CellResult
from lmmprune.compiler.study.choice import Choice, check_allowed
from lmmprune.compiler.study.commands import study_command
from lmmprune.compiler.study.examples import collect_examples
from lmmprune.compiler.study.findings import Findings, find
from lmmprune.compiler.study.folder import Folder, open_study
from lmmprune.compiler.study.grid import FLOAT, UNPRUNED, Cell, grid
from lmmprune.compiler.study.kept_sets import Overlap, load_kept, overlaps
from lmmprune.compiler.study.local import run_locally
from lmmprune.compiler.study.ray_cluster import check_ray, run_on_ray
from lmmprune.compiler.study.report import write_report
from lmmprune.compiler.study.request import StudyRequest
from lmmprune.compiler.study.run_cell import Job, run_cell
from lmmprune.compiler.study.settings import Settings, identity
from lmmprune.compiler.study.summary import best_at_focus
from lmmprune.compiler.study.timing import (
    Group,
    TimingSettings,
    count_steps,
    load_groups,
    plan_groups,
    record_settings,
    time_groups,
)
from lmmprune.compiler.targets import targets
from lmmprune.errors import InputError, require
from lmmprune.progress import Progress, silent, step


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What came out.

    Attributes:
        findings: All of it.
        files: That were written, the report first.
        reused: How many cells had been finished before.
        choice: The fastest variant within a loss, where one was asked for.
    """

    findings: Findings
    files: tuple[Path, ...]
    reused: int
    choice: Choice | None = None


def run_study(request: StudyRequest, progress: Progress = silent) -> StudyResult:
    """Run a study, or go on with one.

    Raises:
        LmmpruneError: Anything that the user can mend; finished cells stay.
    """
    # Everything that can be refused is refused before the first slow step.
    cells = grid(request.variants.chosen, request.ratios, precisions=request.precisions)
    target_of(targets.resolve(request.settings.target).name)
    require("jinja2", "export")
    if request.ray is not None:
        check_ray(request.ray)
    questions = load_examples(request.settings.data, request.settings.prompts)[: request.settings.limit]
    one_picture_each(questions, "a study")
    labelled = _labelled(questions)
    check_allowed(request.max_loss, labelled=labelled)
    about = identity(request.settings, _checkpoint(request.settings), questions)
    asked = {
        "methods": list(dict.fromkeys(one.method for one in request.variants.chosen)),
        "variants": [dataclasses.asdict(one) for one in request.variants.chosen],
        "ratios": list(request.ratios),
        "precisions": list(request.precisions),
    }
    with open_study(request.output, about, asked, force=request.force) as folder:
        for variant in request.variants.chosen:
            if variant.code is not None:
                folder.keep_code(request.variants.files[variant.method], variant.code)
        results = {cell: result for cell in cells if (result := folder.result(cell)) is not None}
        reused = len(results)
        missing = [cell for cell in cells if cell not in results]
        if not labelled:
            # All others are measured by its answers.
            _run(request, folder, [cell for cell in missing if cell == UNPRUNED], progress)
            missing = [cell for cell in missing if cell != UNPRUNED]
        _run(request, folder, missing, progress)
        results = {cell: _finished(folder, cell) for cell in cells}
        measured = [cell for cell, result in results.items() if result.refused is None]
        groups = _time(request, request.timing, folder, measured, questions[0], progress) if request.timing else []
        findings = find(
            results,
            questions,
            groups,
            _overlaps(folder, measured),
            about=about,
            timing=record_settings(request.timing, questions[0]) if request.timing else None,
        )
        with step(progress, "report"):
            shown = best_at_focus(findings)
            examples = collect_examples(findings, shown, questions, folder) if shown else []
            files = write_report(findings, folder.path, shown=shown, examples=examples, command=study_command(request))
            if not request.keep_bundles:
                shutil.rmtree(folder.path / "bundles", ignore_errors=True)
    return StudyResult(findings=findings, files=files, reused=reused)


def _checkpoint(settings: Settings) -> Path:
    """Return the model's directory; refuse a model or a calibration set that all cells would trip over."""
    from lmmprune.models.source import resolve

    source = resolve(settings.model)
    if source.directory is None:
        raise InputError(f"'{settings.model}' has no checkpoint: a study needs one, to ask questions")
    if settings.calibration is not None:
        load_calibration(source, settings.calibration, settings.calibration_samples)
    return source.directory


def _labelled(questions: Sequence[Question]) -> bool:
    """Return whether right answers are known, of all questions or of none."""
    known = sum(bool(question.answers) for question in questions)
    if 0 < known < len(questions):
        raise InputError(
            f"--data: {known} of {len(questions)} questions have an answer: give one with each, or with none, to"
            " compare with the unpruned model"
        )
    return known > 0


def _run(request: StudyRequest, folder: Folder, cells: Sequence[Cell], progress: Progress) -> None:
    _start(request, [Job(folder=folder, settings=request.settings, cell=cell) for cell in cells], "cells", progress)


def _start(request: StudyRequest, jobs: Sequence[Job], what: str, progress: Progress) -> None:
    done = 0

    def count(name: str) -> None:
        nonlocal done
        done += 1
        progress(what, done, len(jobs))

    if not jobs:
        return
    progress(what, 0, len(jobs))
    if request.ray is not None:
        run_on_ray(jobs, request.ray, count, run_cell)
    else:
        run_locally(jobs, request.workers, count, run_cell)


def _finished(folder: Folder, cell: Cell) -> CellResult:
    result = folder.result(cell)
    if result is None:
        raise InputError(f"'{folder.cell(cell)}' vanished while the study ran: start again")
    return result


def _time(
    request: StudyRequest,
    timing: TimingSettings,
    folder: Folder,
    cells: Sequence[Cell],
    question: Question,
    progress: Progress,
) -> list[Group]:
    groups = load_groups(folder, record_settings(timing, question))
    planned = plan_groups(cells, groups)
    # Bundles that an earlier run threw away, and that a new one needs to time its own beside.
    needed = dict.fromkeys(cell for group in planned for cell in group)
    lost = [cell for cell in needed if not (folder.bundle(cell) / "manifest.json").is_file()]
    jobs = [Job(folder=folder, settings=request.settings, cell=cell, rebuild=True) for cell in lost]
    if jobs:
        _start(request, jobs, "bundles again", progress)
    total, done = count_steps(planned, timing), 0

    def count(name: str) -> None:
        nonlocal done
        progress("timing", done, total)
        done += 1

    groups += time_groups(folder, planned, timing, question, count)
    progress("timing", total, total)
    return groups


def _overlaps(folder: Folder, measured: Sequence[Cell]) -> dict[str, tuple[Overlap, ...]]:
    found = {}
    for cell in measured:
        plain = cell.at(FLOAT)
        if cell.quantized and plain in measured:
            kept = [load_kept(folder.cell(one) / "kept.npz") for one in (plain, cell)]
            found[cell.name] = overlaps(*kept)
    return found
