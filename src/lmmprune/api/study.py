"""Measure many variants of a model and write one report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from lmmprune.progress import Progress, silent

if TYPE_CHECKING:
    from lmmprune.compiler.study.run_study import StudyResult

File = str | PathLike[str]


def study(
    model: File,
    out: File,
    *,
    methods: Sequence[str],
    ratios: Sequence[float],
    precisions: Sequence[str] = ("fp",),
    options: Mapping[str, Sequence[object]] | None = None,
    method_files: Sequence[File] = (),
    positions: Sequence[str] = (),
    schedules: Sequence[File] = (),
    data: File = "tiny-llava",
    prompts: Sequence[str] = (),
    limit: int | None = None,
    max_new_tokens: int = 16,
    calibration: File | None = None,
    calibration_samples: int = 32,
    target: str = "ort-cpu",
    workers: int = 1,
    ray: str | None = None,
    timing: bool = True,
    rounds: int = 30,
    new_tokens: int = 16,
    threads: int | None = None,
    max_loss: float | None = None,
    keep_bundles: bool = True,
    force: bool = False,
    progress: Progress = silent,
) -> StudyResult:
    """Measure every method at every ratio in every precision, and write one report.

    What is finished is kept: the same call goes on where it was ended. Call it under ``if __name__ == "__main__":``,
    as its workers are processes.

    Args:
        model: Alias, hub id, or local directory.
        out: Folder, new or to go on with.
        methods: Names; ``all`` among them takes every one.
        ratios: Fractions of visual tokens removed.
        precisions: In which every variant is measured: ``fp``, and any of ``int8``, ``int4`` (to the nearest) and
            ``int4-gptq``.
        options: Hyper-parameters as ``{"fastv.layer": [2, 3]}``: every combination of the values is a variant.
        method_files: Python files that define methods.
        positions: Numbering of the tokens that stay, ``contiguous``, ``original`` or both; none: each method's own.
        schedules: JSON files of sites and counts, each one variant more of the methods that can follow it.
        data: As for ``compare``; where no answer is known, those of the unpruned model are the measure.
        prompts: Asked about every picture of a folder.
        limit: Ask only the first so many questions.
        max_new_tokens: Answers are cut there.
        calibration: Pictures for INT8's ranges; None: what fits the model.
        calibration_samples: Samples at most.
        target: Where it will run.
        workers: Processes on this machine.
        ray: Address of a Ray cluster to run on instead, or ``auto``; nodes share the folder.
        timing: Whether times are taken.
        rounds: Rounds of timing that count.
        new_tokens: Tokens per timed answer.
        threads: Threads within an operator when timing.
        max_loss: Points of accuracy that the result's ``choice``, the fastest such variant, may lose.
        keep_bundles: Whether bundles stay once all is timed.
        force: Begin a study that is there anew.
        progress: Called while it runs.

    Returns:
        The findings, the files that were written, and how many variants had been measured before.

    Raises:
        LmmpruneError: Anything that you can mend, in one line.
    """
    from lmmprune.compiler.study.choice import choose
    from lmmprune.compiler.study.request import StudyRequest
    from lmmprune.compiler.study.run_study import run_study
    from lmmprune.compiler.study.settings import Settings
    from lmmprune.compiler.study.timing import TimingSettings
    from lmmprune.compiler.study.variants import choose_variants, parse_settings

    variants = choose_variants(
        methods,
        (),
        files=[Path(file) for file in method_files],
        options=parse_settings([f"{name}={value}" for name, values in (options or {}).items() for value in values]),
        positions=positions,
        schedules=[Path(file) for file in schedules],
    )
    request = StudyRequest(
        settings=Settings(
            model=_absolute(model),
            data=_absolute(data),
            limit=limit,
            max_new_tokens=max_new_tokens,
            target=target,
            calibration=None if calibration is None else Path(calibration).resolve(),
            calibration_samples=calibration_samples,
            prompts=tuple(prompts),
        ),
        variants=variants,
        ratios=ratios,
        precisions=precisions,
        output=Path(out),
        workers=workers,
        ray=ray,
        timing=TimingSettings(rounds=rounds, new_tokens=new_tokens, threads=threads) if timing else None,
        keep_bundles=keep_bundles,
        force=force,
        max_loss=max_loss,
    )
    result = run_study(request, progress)
    if max_loss is None:
        return result
    return dataclasses.replace(result, choice=choose(result.findings, max_loss, request.settings, variants))


def _absolute(name: File) -> str:
    """Return a path so that every worker finds it, wherever it runs; aliases and hub ids stay."""
    known = str(name) == "tiny-llava" or not Path(name).exists()
    return str(name) if known else str(Path(name).resolve())
