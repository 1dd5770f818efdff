"""Choose how to prune a model, within a loss or a time."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from lmmprune.errors import require
from lmmprune.progress import Progress, silent

if TYPE_CHECKING:
    from lmmprune.compiler.data.questions import Question
    from lmmprune.compiler.tune.run_tune import TuneResult

File = str | PathLike[str]

METHODS = ("cls", "divprune", "vispruner", "scope", "cdpruner", "fastv", "pyramiddrop", "v2drop", "ficoco-l")
RATIOS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)


def tune(
    model: File,
    out: File,
    data: File | Sequence[Question],
    *,
    max_loss: float | None = None,
    max_kl: float | None = None,
    ttft: float | None = None,
    ttft_ms: float | None = None,
    flops: float | None = None,
    prompts: Sequence[str] = (),
    heldout: File | Sequence[Question] | None = None,
    limit: int | None = None,
    methods: Sequence[str] = METHODS,
    method_files: Sequence[File] = (),
    ratios: Sequence[float] = RATIOS,
    positions: Sequence[str] = ("original", "contiguous"),
    int8: str | None = None,
    search: bool = True,
    target: str = "ort-cpu",
    weights: str = "auto",
    layers: int | None = None,
    calibration: File | None = None,
    match: str = "exact",
    max_new_tokens: int = 16,
    rounds: int = 20,
    threads: int | None = None,
    workers: int = 1,
    ray: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> TuneResult:
    """Choose method, ratio, positions and precision within one budget; finish what an earlier call began.

    Args:
        model: Alias, hub id, or local directory.
        out: Folder, new or to go on with.
        data: A folder of pictures, a JSON Lines file with ``image`` and ``prompt`` (``answer`` where it is known),
            ``tiny-llava``, or the examples themselves.
        max_loss: Points of accuracy that may be lost; all answers must be known.
        max_kl: Divergence from the unpruned model that is allowed, nats per token.
        ttft: Time to the first token that is allowed, over the unpruned model's.
        ttft_ms: The same in milliseconds.
        flops: FLOPs of tower and prefill that are allowed, over the unpruned model's.
        prompts: What to ask about each picture of a folder.
        heldout: As ``data``: what the final numbers are measured on; None: half of the pictures.
        limit: Use only the first so many examples of ``data``.
        methods: Names, or ``("all",)``.
        method_files: Python files that define methods of your own, which are tried, too.
        ratios: Fractions of visual tokens removed.
        positions: ``original``, ``contiguous`` or both.
        int8: Also try INT8: ``all``, or ``auto`` (what hurts most stays in float).
        search: Whether to search for a schedule, layer by layer, where the budget is a loss.
        target: Where it will run.
        weights: ``auto``, or ``dummy`` for synthetic ones.
        layers: Keep only so many decoder layers, with ``dummy`` weights.
        calibration: Pictures for INT8's ranges; None: what fits the model.
        match: When an answer is right: ``exact``, ``contains`` or ``vqa``.
        max_new_tokens: Answers are cut there.
        rounds: Timed rounds of each finalist, at least 2.
        threads: Threads within an operator.
        workers: Processes that measure candidates at once, each with one in memory; times are always taken alone.
        ray: Address of a Ray cluster that does so instead, or ``auto``; its nodes share the folder.
        force: Begin anew where another run is.
        progress: Called while it runs.

    Raises:
        LmmpruneError: Anything that you can mend; the budget is out of reach, and what comes nearest.
    """
    require("onnx_ir", "export")
    from lmmprune.compiler.data.questions import load_examples, one_picture_each
    from lmmprune.compiler.export.request import Request
    from lmmprune.compiler.tune.budget import one_budget
    from lmmprune.compiler.tune.candidate import candidates
    from lmmprune.compiler.tune.crew import Crew
    from lmmprune.compiler.tune.examples import split
    from lmmprune.compiler.tune.request import TuneRequest
    from lmmprune.compiler.tune.run_tune import run_tune

    def examples(given: File | Sequence[Question], most: int | None) -> list[Question]:
        found = load_examples(str(given), prompts) if isinstance(given, (str, PathLike)) else list(given)
        one_picture_each(found[:most], "tune")
        return found[:most]

    budget = one_budget(max_loss=max_loss, max_kl=max_kl, ttft=ttft, ttft_ms=ttft_ms, flops=flops)
    tried = candidates(methods, ratios, positions, int8, [Path(file) for file in method_files])
    tuning, final = split(examples(data, limit), None if heldout is None else examples(heldout, None))
    request = TuneRequest(
        template=Request(
            model=str(model),
            output=Path(out),
            target=target,
            weights=weights,
            layers=layers,
            calibration=None if calibration is None else Path(calibration),
        ),
        budget=budget,
        candidates=tried,
        tuning=tuning,
        heldout=final,
        output=Path(out),
        search=search,
        match=match,
        max_new_tokens=max_new_tokens,
        rounds=rounds,
        threads=threads,
        crew=Crew(workers=workers, ray=ray),
        force=force,
    )
    return run_tune(request, progress)
