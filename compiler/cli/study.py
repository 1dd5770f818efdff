"""``lmmprune study``: the grid method x ratio x precision and its report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmmprune.compiler.cli import completion
from lmmprune.compiler.cli.command import Command, option
from lmmprune.compiler.cli.given import refuse_ignored
from lmmprune.compiler.cli.options import (
    OUTPUT,
    calibration_options,
    force_option,
    method_files_option,
    model_option,
    output_option,
    target_option,
    threads_option,
)
from lmmprune.compiler.cli.output import json_option, note, print_json, show
from lmmprune.compiler.cli.progress import steps
from lmmprune.compiler.cli.table import Column, table
from lmmprune.compiler.cli.values import numbers_of, words_of
from lmmprune.compiler.targets import machine
from lmmprune.errors import InputError, require

if TYPE_CHECKING:
    from lmmprune.compiler.study.findings import Findings, Row

_METHODS = "divprune,freepruner,ficoco-v,inflection,pyramiddrop,random"
_RATIOS = "0,0.25,0.5,0.75,0.9"
# Each worker holds PyTorch and a model.
_MOST_WORKERS = 4

_GRID = "Variants"
_QUESTIONS = "Questions"
_TIMING = "Timing"


@click.command("study", cls=Command, example="lmmprune study --model tiny-llava --int8 -o study/")
@model_option(required=True)
@option(
    "--methods",
    type=completion.METHODS,
    metavar="X,X,..|all",
    help=f"Methods (see 'lmmprune methods').  [default: {_METHODS.replace(',', ', ')}, and those of --method-file]",
    group=_GRID,
)
@option(
    "--ratios",
    default=_RATIOS,
    metavar="R,R,..",
    help=f"Fractions of visual tokens removed.  [default: {_RATIOS.replace(',', ', ')}]",
    group=_GRID,
)
@option(
    "--set",
    "pairs",
    multiple=True,
    metavar="METHOD.NAME=VALUE",
    help="A hyper-parameter of a method; may be repeated.",
    group=_GRID,
)
@method_files_option("Python file that defines methods.", group=_GRID)
@option(
    "--positions",
    metavar="contiguous,original",
    help="Numbering of the tokens that stay, one or both.  [default: each method's own]",
    group=_GRID,
)
@option(
    "--schedule",
    "schedules",
    multiple=True,
    type=click.Path(path_type=Path),
    help="JSON file of sites and counts, as for 'export': one variant more of each method that can follow it.",
    group=_GRID,
)
@option("--int8", is_flag=True, help="Measure every variant in INT8 too: --precisions fp,int8.", group=_GRID)
@option(
    "--precisions",
    metavar="fp,int8,int4,int4-gptq",
    help="What to measure every variant in; fp is floating point, int4 rounds to the nearest.  [default: fp]",
    group=_GRID,
)
@calibration_options(_GRID)
@option(
    "--data",
    help="As for 'compare'; without answers, the unpruned model's are the measure.  [default: the model's own]",
    group=_QUESTIONS,
)
@option(
    "--prompt",
    "prompts",
    multiple=True,
    help="Ask this about every picture of a folder; may be repeated.",
    group=_QUESTIONS,
)
@option("--limit", type=click.IntRange(min=1), help="Ask only the first so many questions.", group=_QUESTIONS)
@option(
    "--max-new-tokens",
    default=16,
    show_default=True,
    type=click.IntRange(min=1),
    help="Cut answers there.",
    group=_QUESTIONS,
)
@option("--timing/--no-timing", default=True, show_default=True, help="Take times, once all is asked.", group=_TIMING)
@option("--rounds", default=30, show_default=True, type=click.IntRange(min=2), help="Rounds that count.", group=_TIMING)
@option(
    "--new-tokens",
    default=16,
    show_default=True,
    type=click.IntRange(min=2),
    help="Tokens per timed answer.",
    group=_TIMING,
)
@threads_option("Threads within an operator when timing.", group=_TIMING)
@target_option()
@option(
    "--max-loss",
    type=float,
    metavar="POINTS",
    help="Name the fastest variant that loses no more points of accuracy, and the command that makes it.",
    group=OUTPUT,
)
@output_option("Folder, new or to go on with.")
@option(
    "--workers",
    type=click.IntRange(min=1),
    help=f"Processes that work at once.  [default: cores, {_MOST_WORKERS} at most]",
    group=OUTPUT,
)
@option(
    "--ray",
    metavar="HOST:PORT",
    help="Work on this Ray cluster, or 'auto'; its nodes share the folder.",
    group=OUTPUT,
)
@option(
    "--keep-bundles/--discard-bundles",
    default=True,
    show_default=True,
    help="What becomes of the bundles once all is timed.",
    group=OUTPUT,
)
@force_option("a study that is there: begin anew")
@json_option
def command(
    *,
    model: str,
    methods: str | None,
    pairs: tuple[str, ...],
    method_files: tuple[Path, ...],
    positions: str | None,
    schedules: tuple[Path, ...],
    ratios: str,
    int8: bool,
    precisions: str | None,
    output: Path,
    data: str | None,
    prompts: tuple[str, ...],
    limit: int | None,
    max_new_tokens: int,
    calib: Path | None,
    calib_samples: int,
    target: str,
    workers: int | None,
    ray: str | None,
    timing: bool,
    rounds: int,
    new_tokens: int,
    threads: int | None,
    max_loss: float | None,
    keep_bundles: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Measure every method at every ratio in every precision, and write one report.

    Finished variants are kept: the same command goes on where it was ended, and one with more methods or ratios
    measures only those. --set with several values of a hyper-parameter measures a variant of each; --method-file may be
    repeated.
    """
    require("onnx_ir", "export")
    from lmmprune.compiler.study.choice import choose
    from lmmprune.compiler.study.request import StudyRequest
    from lmmprune.compiler.study.run_study import run_study
    from lmmprune.compiler.study.settings import Settings
    from lmmprune.compiler.study.summary import bullets
    from lmmprune.compiler.study.timing import TimingSettings
    from lmmprune.compiler.study.variants import choose_variants, parse_settings

    refuse_ignored(ray is None, "is for this machine alone: with --ray, the cluster decides", "workers")
    refuse_ignored(timing, "says how to take times: leave out --no-timing", "rounds", "new_tokens", "threads")
    variants = choose_variants(
        None if methods is None else words_of(methods),
        words_of(_METHODS),
        files=method_files,
        options=parse_settings(pairs),
        positions=words_of(positions or ""),
        schedules=schedules,
    )
    request = StudyRequest(
        settings=Settings(
            model=_absolute(model),
            data=_absolute(_data(model, data)),
            limit=limit,
            max_new_tokens=max_new_tokens,
            target=target,
            calibration=calib and calib.resolve(),
            calibration_samples=calib_samples,
            prompts=prompts,
        ),
        variants=variants,
        ratios=numbers_of("--ratios", ratios),
        precisions=_precisions(int8, precisions),
        output=output,
        workers=workers or min(machine.cores(), _MOST_WORKERS),
        ray=ray,
        timing=TimingSettings(rounds=rounds, new_tokens=new_tokens, threads=threads) if timing else None,
        keep_bundles=keep_bundles,
        force=force,
        max_loss=max_loss,
    )
    with steps() as step:
        result = run_study(request, step)
    findings = result.findings
    if as_json:
        document = _document(findings, result.files, result.reused)
        if max_loss is not None:
            found = choose(findings, max_loss, request.settings, variants)
            document["choice"] = {"cell": found.row.cell.name, "line": found.line, "command": found.command}
        print_json(document)
        return
    columns = (
        "variant",
        Column(title="precision", drop=3),
        "right, %",
        Column(title="retained, %", drop=1),
        *((Column(title="TTFT ms", drop=2), "speed-up") if findings.timing else ("FLOPs, %",)),
        Column(title="front", drop=4),
    )
    if not findings.labelled:
        columns = ("variant", *columns[1:2], "answers equal, %", "first token, %", "KL, nats", *columns[4:])
    show(
        table(columns, [_cells(row, len(columns)) for row in findings.rows]),
        "\n".join(f"* {line}" for line in bullets(findings)),
    )
    note(f"{result.reused} of {len(findings.rows)} variants had been measured before; report: {result.files[0]}")
    if max_loss is not None:
        found = choose(findings, max_loss, request.settings, variants)
        show(f"{found.line}:", found.command)


def _precisions(int8: bool, precisions: str | None) -> list[str]:
    if int8 and precisions is not None:
        raise InputError("--int8 and --precisions say the same: leave out --int8, and have int8 among the others")
    return words_of(precisions) if precisions is not None else ["fp", "int8"] if int8 else ["fp"]


def _data(model: str, data: str | None) -> str:
    if data is None and model != "tiny-llava":
        raise InputError(f"no questions for '{model}': give --data with a JSON Lines file of image, prompt and answer")
    return data or model


def _absolute(name: str) -> str:
    """Return a path so that every worker finds it, wherever it runs; aliases and hub ids stay."""
    known = name == "tiny-llava" or not Path(name).exists()
    return name if known else str(Path(name).resolve())


def _cells(row: Row, width: int) -> list[str]:
    from lmmprune.compiler.study.words import shares, times

    if row.accuracy is None:
        return [row.cell.label, row.cell.precision if row.cell.quantized else "float", "refused", *["-"] * (width - 3)]
    timed, near = row.times.get("ttft_ms"), row.parts.measures
    if near is not None:
        kl = f"{near.kl.value:.3g} ({near.kl.low:.3g} to {near.kl.high:.3g})"
        told = [shares(near.exact), shares(near.first), kl]
    else:
        told = [shares(row.accuracy), shares(row.retention) if row.retention else "-"]
    return [
        row.cell.label,
        row.precision,
        *told,
        *([f"{timed.ms:.3g}", times(timed.speedup)] if timed else [f"{100 / row.speed:.3g}"]),
        "yes" if row.on_front else "no",
    ]


def _document(findings: Findings, files: tuple[Path, ...], reused: int) -> dict[str, Any]:
    from lmmprune.compiler.study.summary import summary
    from lmmprune.compiler.study.write_csv import cell_figures

    pairs = {pair.quantized.cell: pair for pair in findings.pairs}
    return {
        "study": dict(findings.about),
        "timing": None if findings.timing is None else dict(findings.timing),
        "summary": summary(findings),
        "cells": [cell_figures(row, pairs.get(row.cell)) for row in findings.rows],
        "front": [row.cell.name for row in findings.front],
        "reused": reused,
        "files": [str(file) for file in files],
    }
