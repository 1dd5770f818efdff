"""``lmmprune tune``: choose how to prune, within a loss or a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lmmprune.api.tune import METHODS, RATIOS
from lmmprune.compiler.cli import completion
from lmmprune.compiler.cli.command import Command, option
from lmmprune.compiler.cli.given import refuse_ignored
from lmmprune.compiler.cli.options import (
    MODEL,
    OUTPUT,
    force_option,
    method_files_option,
    model_option,
    output_option,
    target_option,
    threads_option,
)
from lmmprune.compiler.cli.output import json_option, note, print_json, show
from lmmprune.compiler.cli.progress import phases
from lmmprune.compiler.cli.values import numbers_of, words_of

_BUDGET = "Budget (one of them)"
_TRIED = "What is tried"
_DATA = "Data"
_METHODS, _RATIOS = ",".join(METHODS), ",".join(map(str, RATIOS))


@click.command("tune", cls=Command, example="lmmprune tune --model tiny-llava --data tiny-llava --max-loss 1 -o tuned/")
@model_option(required=True)
@option(
    "--weights",
    type=click.Choice(["auto", "dummy"]),
    default="auto",
    help="'dummy': synthetic weights, to try times.  [default: the checkpoint's]",
    group=MODEL,
)
@option("--layers", type=int, help="Keep only so many decoder layers (with --weights dummy).", group=MODEL)
@option("--max-loss", type=float, metavar="POINTS", help="Points of accuracy that may be lost.", group=_BUDGET)
@option("--max-kl", type=float, metavar="NATS", help="Divergence per token; needs no answers.", group=_BUDGET)
@option("--ttft", type=float, metavar="RATIO", help="Time to the first token, over the unpruned one.", group=_BUDGET)
@option("--ttft-ms", type=float, metavar="MS", help="Time to the first token.", group=_BUDGET)
@option("--flops", type=float, metavar="RATIO", help="FLOPs until then, over the unpruned ones.", group=_BUDGET)
@option(
    "--methods",
    type=completion.METHODS,
    default=_METHODS,
    metavar="X,X,..|all",
    help=f"Methods (see 'lmmprune methods').  [default: {_METHODS.replace(',', ', ')}]",
    group=_TRIED,
)
@method_files_option("Python file that defines methods, which are tried, too; may be repeated.", group=_TRIED)
@option(
    "--ratios",
    default=_RATIOS,
    metavar="R,R,..",
    help=f"Fractions of visual tokens removed.  [default: {_RATIOS.replace(',', ', ')}]",
    group=_TRIED,
)
@option("--positions", default="original,contiguous", show_default=True, metavar="X,X", help="Numbering.", group=_TRIED)
@option("--int8", is_flag=True, help="Try each in INT8 too.", group=_TRIED)
@option(
    "--int8-policy",
    type=click.Choice(["all", "auto"]),
    default="all",
    show_default=True,
    help="What is quantized: everything, or auto: all but what hurts most.",
    group=_TRIED,
)
@option(
    "--calib",
    type=click.Path(path_type=Path),
    help="Calibrate INT8 with these pictures (a directory) or pairs of image and prompt (JSON Lines).",
    group=_TRIED,
)
@option(
    "--search/--no-search",
    default=True,
    show_default=True,
    help="Search for a schedule, layer by layer, where the budget is a loss.",
    group=_TRIED,
)
@option("--data", required=True, help="Folder of pictures, JSON Lines file, or 'tiny-llava'.", group=_DATA)
@option("--prompt", "prompts", multiple=True, help="Ask this about every picture of a folder.", group=_DATA)
@option("--heldout", help="As --data: what the final numbers come from.  [default: half of the pictures]", group=_DATA)
@option("--limit", type=click.IntRange(min=2), help="Use only the first so many examples of --data.", group=_DATA)
@option("--match", default="exact", show_default=True, metavar="exact|contains|vqa", help="What is right.", group=_DATA)
@option(
    "--max-new-tokens",
    default=16,
    show_default=True,
    type=click.IntRange(min=1),
    help="Cut answers there.",
    group=_DATA,
)
@option("--rounds", default=20, show_default=True, type=click.IntRange(min=2), help="Timed rounds of each finalist.")
@threads_option()
@target_option()
@output_option("Folder, new or to go on with.", group=OUTPUT)
@option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Candidates that are measured at once, each in a process of its own.",
    group=OUTPUT,
)
@option("--ray", metavar="HOST:PORT", help="As for 'study'.", group=OUTPUT)
@force_option("a run that is there: begin anew")
@json_option
def command(
    *,
    output: Path,
    data: str,
    methods: str,
    ratios: str,
    positions: str,
    int8: bool,
    int8_policy: str,
    calib: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Choose method, ratio, positions and precision: the fastest within a loss, or the most faithful within a time.

    Many candidates are measured on few examples, few on many; one is dropped only when its interval says so. A run that
    was killed goes on with the same line.
    """
    from lmmprune.api.tune import tune
    from lmmprune.compiler.tune.write_report import document_of, line, named_lines

    refuse_ignored(options["ray"] is None, "is for this machine alone: with --ray, the cluster decides", "workers")
    refuse_ignored(int8, "says how to quantize: add --int8", "int8_policy", "calib")
    with phases() as progress:
        found = tune(
            options.pop("model"),
            output,
            data,
            methods=words_of(methods),
            ratios=numbers_of("--ratios", ratios),
            positions=words_of(positions),
            int8=int8_policy if int8 else None,
            calibration=calib,
            progress=progress,
            **options,
        )
    if as_json:
        print_json(document_of(found.choice, found.finalists, found.dropped))
        return
    for name, one in named_lines(found.choice):
        if one is not None:
            show(f"{name}: {line(one)}\n  {one.command}")
    note(f"{len(found.dropped)} candidates left the race; report: {found.files[0]}")
