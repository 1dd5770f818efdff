"""``lmmprune flops``: what the prefill costs before and after pruning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lmmprune.compiler.cli.command import GENERAL, Command, argument, option
from lmmprune.compiler.cli.given import refuse_ignored
from lmmprune.compiler.cli.options import method_options, model_option, ratio_options, schedule_option, unsealed_option
from lmmprune.compiler.cli.output import json_option, note, print_json, show
from lmmprune.compiler.cli.progress import progress
from lmmprune.compiler.cli.table import Column, table
from lmmprune.compiler.cli.values import set_options
from lmmprune.compiler.export.values import Schedule
from lmmprune.errors import InputError
from lmmprune.units import human_si


@click.command("flops", cls=Command, example="lmmprune flops --model llava-1.5-7b --keep 192")
@argument("bundle", required=False, type=click.Path(path_type=Path))
@model_option("Alias (see 'lmmprune models'), hub id, or local directory, instead of a bundle.", group=GENERAL)
@ratio_options(group=GENERAL)
@schedule_option(group=GENERAL)
@method_options(
    None,
    about="Follow this method's schedule (see 'lmmprune methods').  [default: before the decoder]",
    file=False,
    group=GENERAL,
)
@option("--text", type=click.IntRange(min=0), help="Text tokens beside the visual ones.  [default: 60]")
@option("--graph", is_flag=True, help="Trace a few decoder layers, count in the graph, and compare.")
@option("--layers", type=int, help="Decoder layers to trace with --graph.  [default: 2]")
@unsealed_option
@json_option
def command(bundle: Path | None, model: str | None, as_json: bool, **options: Any) -> None:
    """Say what pruning saves in the prefill: FLOPs and key/value cache before and after.

    A model's cost comes from a formula, and no weight is read. A bundle's is in its manifest and is counted again in
    its files.
    """
    if model is None:
        if bundle is None:
            raise InputError("nothing to count: give --model or a bundle's directory")
        # 0 was given, though it equals False.
        if given := [name for name, value in options.items() if not any(value is empty for empty in (None, False, ()))]:
            raise InputError(f"--{given[0]} goes with --model: the figures of a bundle are what it was exported with")
        _bundle(bundle, as_json=as_json)
    elif bundle is not None:
        raise InputError("--model and a bundle's directory exclude each other: give one")
    else:
        given = [f"--{name}" for name in ("ratio", "keep", "schedule") if options[name] is not None]
        if len(given) > 1 and "--schedule" in given:
            raise InputError(f"{' and '.join(given)} exclude each other: give one")
        refuse_ignored(
            bool(given), "says how tokens are removed: add --ratio R, --keep K or --schedule", "method", "pairs"
        )
        _model(model, as_json=as_json, **options)


def _model(
    model: str,
    *,
    ratio: float | None,
    keep: int | None,
    schedule: Path | None,
    method: str | None,
    pairs: tuple[str, ...],
    text: int | None,
    graph: bool,
    layers: int | None,
    as_json: bool,
) -> None:
    from lmmprune.compiler.flops.formula import TEXT_TOKENS
    from lmmprune.compiler.flops.report import model_report, traced_report

    if layers is not None and not graph:
        raise InputError("--layers goes with --graph: the formula knows all layers")
    if graph and method:
        raise InputError("--graph and --method exclude each other: export, then 'lmmprune flops DIR' counts its graphs")
    text = TEXT_TOKENS if text is None else text
    counts = None if schedule is None else Schedule.read(schedule).counts
    data = model_report(
        model,
        ratio=ratio,
        keep=keep,
        text_tokens=text,
        method=method,
        options=set_options(pairs),
        schedule=counts,
    )
    sums = {side: count + text for side, count in data["visual_tokens"].items()}
    if graph:
        with progress() as bar:
            bar.add_task("trace", total=None)
            traced = traced_report(model, min(2, len(data["layers"])) if layers is None else layers, sums)
        data["graph"] = traced
    if as_json:
        print_json(data)
        return
    rows = [
        _row("visual tokens", data["visual_tokens"], "{:.4g}".format),
        _row(f"with {text} text tokens", sums, "{:.4g}".format),
        _row("prefill FLOPs", data["prefill_flops"], human_si),
        _row("key/value cache, 16 bit", data["kv_bytes"], _bytes),
    ]
    title = f"{model}: {len(data['layers'])} decoder layers, by formula"
    show(table(["", "before", "after", "ratio"], rows, title=title))
    if graph:
        columns: list[str | Column] = [
            "layer",
            "before: graph",
            Column(title="formula", drop=1),
            "",
            "after: graph",
            Column(title="formula", drop=1),
            "",
        ]
        show(table(columns, [_traced(row) for row in traced], title="FLOPs of layers in the traced graph"))
    show(data["convention"])


def _bundle(path: Path, *, as_json: bool) -> None:
    from lmmprune.compiler.flops.report import bundle_report

    data = bundle_report(path)
    if as_json:
        print_json(data)
        return
    rows = [
        [*_row(f"tokens at {site['site']}", {"before": site["tokens_in"], "after": site["tokens_out"]}, str), ""]
        for site in data["sites"]
    ]
    for part, flops in data["flops"].items():
        found = data["counted"] and data["counted"].get(part)
        same = "-" if found is None else "equal" if found == flops["after"] else human_si(found)
        rows.append([*_row(f"{part} FLOPs", flops, human_si), same])
    rows.append([*_row(f"key/value cache, {data['kv_dtype']}", data["kv_bytes"], _bytes), ""])
    show(
        table(
            ["", "before", "after", "ratio", "in the files"],
            rows,
            title=f"{data['model']}: {data['method'] or 'not pruned'}",
        ),
        f"1 multiply-accumulate = 2 FLOPs; prefill with {_pictures(data)}{data['text_tokens']} text tokens and lm_head"
        " at one position",
    )
    if data["not_counted"]:
        note(f"not counted in the files: {data['not_counted']}")


def _pictures(data: dict[str, Any]) -> str:
    return f"{data['images']} pictures, " if data["images"] > 1 else ""


def _row(label: str, pair: dict[str, float], write: Callable[[float], str]) -> list[str]:
    before, after = pair["before"], pair["after"]
    return [label, write(before), write(after), f"{after / before:.3f}"]


def _traced(row: dict[str, Any]) -> list[str]:
    cells = [str(row["layer"])]
    for side, flops in row["flops"].items():
        formula = row["formula"][side]
        cells += [human_si(flops), human_si(formula), "equal" if flops == formula else f"{row['ratio'][side]:.4f}"]
    return cells


def _bytes(count: float) -> str:
    return human_si(count, "B", digits=1)
