"""``lmmprune rewrite``: prune a graph that another exporter made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmmprune.compiler.cli.command import Command, argument, option
from lmmprune.compiler.cli.given import refuse_ignored
from lmmprune.compiler.cli.options import (
    MODEL,
    dtype_option,
    force_option,
    method_options,
    output_option,
    ratio_options,
    target_option,
)
from lmmprune.compiler.cli.output import json_option, note, print_json, show
from lmmprune.compiler.cli.progress import steps
from lmmprune.compiler.cli.table import table
from lmmprune.compiler.cli.values import number_pair, set_options
from lmmprune.defaults import TOWER_METHOD
from lmmprune.errors import require
from lmmprune.units import human_bytes, human_si

if TYPE_CHECKING:
    from lmmprune.compiler.rewrite.rewrite import RewriteReport


@click.command(
    "rewrite",
    cls=Command,
    example="lmmprune rewrite model.onnx --image-size 336 --ratio 0.5 -o pruned.onnx",
)
@argument("source", metavar="IN.onnx", type=click.Path(path_type=Path))
@option(
    "--layer",
    type=int,
    help="Hidden state for the output, such as -2 as in LLaVA.  [default: what it holds]",
    group=MODEL,
)
@option("--features", help="Output that holds the features.  [default: the last one with tokens]", group=MODEL)
@option(
    "--image-size",
    metavar="PIXELS|HxW",
    help="Size of the picture, where the graph leaves it open.",
    group=MODEL,
)
@option(
    "--batch",
    type=click.IntRange(min=1),
    help="Pictures per call, where the graph leaves it open.  [default: 1]",
    group=MODEL,
)
@option(
    "--grid",
    metavar="RxC",
    help="Rows and columns of patches.  [default: those of the patch embedding]",
    group=MODEL,
)
@ratio_options()
@method_options(TOWER_METHOD)
@target_option()
@dtype_option("the graph's")
@output_option("File to write.")
@force_option("a file that is there")
@json_option
def command(*, pairs: tuple[str, ...], image_size: str | None, grid: str | None, as_json: bool, **request: Any) -> None:
    """Prune the vision tower in an ONNX file of another exporter: CLIP, SigLIP or another ViT, opset 13 or newer."""
    require("onnx_ir", "export")
    from lmmprune.compiler.rewrite.rewrite import Request, rewrite

    refuse_ignored(
        request["ratio"] is not None or request["keep"] is not None,
        "says how tokens are removed: add --ratio R or --keep K",
        *("method", "method_file", "pairs"),
    )

    with steps() as step:
        report = rewrite(
            Request(
                options=set_options(pairs),
                image_size=number_pair("--image-size", image_size, single=True),
                grid=number_pair("--grid", grid),
                **request,
            ),
            step,
        )
    for name, why in report.dropped.items():
        note(f"dropped the output '{name}': {why}")
    if report.picture_dtype != report.dtype[1]:
        note(f"the picture is read as {report.dtype[1]}, it was {report.picture_dtype}")
    before, after = report.tokens
    if as_json:
        print_json({"output": str(request["output"])} | _document(report))
        return
    rows = [[f"tokens at {site}", str(n), str(k), f"{k / n:.3f}"] for site, n, k in report.schedule]
    for label, (n, k), text in (
        ("FLOPs", report.flops, human_si),
        ("nodes", (report.nodes[0], report.nodes[2]), str),
    ):
        rows.append([label, text(n), text(k), f"{k / n:.3f}"])
    (name, shape), (depth, layers) = report.features, report.layer
    cls = ", row 0 is CLS" if report.has_cls else ""
    show(
        table(["", "before", "after", "ratio"], rows, title=f"{report.method or 'not pruned'}, {report.target}"),
        f"'{name}' {list(shape)} of layer {depth} of {layers}{cls}",
        f"{before} -> {after} visual tokens; {human_bytes(report.bytes)} in '{request['output']}';"
        f" {report.seconds:.1f} s",
    )


def _document(report: RewriteReport) -> dict[str, Any]:
    """Return a report with a name for each number."""
    name, shape = report.features
    pair = ("before", "after")
    return {
        "features": {
            "output": name,
            "shape": shape,
            "layer": report.layer[0],
            "layers": report.layer[1],
            "has_cls": report.has_cls,
            "grid": report.grid,
        },
        "method": report.method,
        "parameters": dict(report.parameters),
        "tokens_before": report.tokens[0],
        "tokens_after": report.tokens[1],
        "sites": [{"site": site, "tokens_in": n, "tokens_out": k} for site, n, k in report.schedule],
        "flops": dict(zip(pair, report.flops, strict=True)),
        "nodes": dict(zip(("before", "canonical", "after"), report.nodes, strict=True)),
        "opset": dict(zip(pair, report.opset, strict=True)),
        "dtype": dict(zip(pair, report.dtype, strict=True)),
        "dropped_outputs": dict(report.dropped),
        "target": report.target,
        "bytes": report.bytes,
        "seconds": round(report.seconds, 3),
    }
