"""Build TensorRT-RTX engines of tiny-llava with every method, in every type, for several architectures.

python scripts/tiny_llava/build_tiny_engines.py -o docs/rtx_engines

No GPU is needed. Of each method those graphs are built that it cuts in; the first row has both, unpruned.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from lmmprune.compiler.build.build import build
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.values import Int8, Ratio
from lmmprune.errors import LmmpruneError
from lmmprune.models.canonical import shared_trace
from lmmprune.passes.methods import METHODS

PRECISIONS: Mapping[str, Mapping[str, Any]] = {
    "float32": {"dtype": "float32"},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "INT8": {"int8": Int8(), "calibration_samples": 2},
}
ARCHS = ("sm86", "sm89", "sm120")
UNPRUNED = "unpruned"


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("docs/rtx_engines"), show_default=True)
@click.option("--arch", "archs", multiple=True, default=ARCHS, show_default=True)
@click.option("--method", "methods", multiple=True, default=(UNPRUNED, *sorted(METHODS)), help="[default: all]")
def main(output: Path, archs: tuple[str, ...], methods: tuple[str, ...]) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    traced = shared_trace()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work, Progress(transient=True) as bar:
        task = bar.add_task("", total=len(methods) * len(PRECISIONS) * len(archs))
        for method in methods:
            for precision, options in PRECISIONS.items():
                pruned = {} if method == UNPRUNED else {"method": method, "tokens": Ratio(0.5)}
                bundle = Path(work) / "bundle"
                request = Request(model="tiny-llava", output=bundle, target="tensorrt-rtx", **pruned, **options)
                manifest = export(request, traced=traced).manifest
                inside = {stage.in_decoder for stage in manifest.schedule} or {False, True}
                components = [name for name, side in (("vision", False), ("decoder", True)) if side in inside]
                for arch in archs:
                    bar.update(task, description=f"{method} {precision} {arch}")
                    rows += _engines(bundle, method, precision, arch, components)
                    bar.advance(task)
                shutil.rmtree(bundle)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    text = "\n".join(_lines(rows, methods)) + "\n"
    output.with_suffix(".md").write_text(text, encoding="utf-8")
    click.echo(text)


def _engines(bundle: Path, method: str, precision: str, arch: str, components: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for component in components:
        row: dict[str, Any] = {"method": method, "precision": precision, "arch": arch, "component": component}
        try:
            (built,) = build(bundle, "tensorrt-rtx", arch=arch, components=[component])
        except LmmpruneError as error:
            rows.append(row | {"error": str(error)})
            continue
        record = built.record
        builder = f"{record.builder} {record.version}"
        rows.append(row | {"bytes": record.bytes, "seconds": record.seconds, "builder": builder})
    return rows


def _lines(rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> list[str]:
    """Return the table: megabytes per type, smallest and largest of the architectures."""
    lines = [
        f"| method | engine | {' | '.join(f'{name}, MB' for name in PRECISIONS)} | built in, s |",
        f"|---|---|{'--:|' * len(PRECISIONS)}--:|",
    ]
    for method in methods:
        for component in ("vision", "decoder"):
            mine = [row for row in rows if (row["method"], row["component"]) == (method, component)]
            if not mine:
                continue
            cells = [_cell([row for row in mine if row["precision"] == precision]) for precision in PRECISIONS]
            seconds = [row["seconds"] for row in mine if "seconds" in row]
            took = f"{min(seconds):.1f}-{max(seconds):.1f}" if seconds else "-"
            lines.append(f"| {method} | {component} | {' | '.join(cells)} | {took} |")
    archs = ", ".join(dict.fromkeys(row["arch"] for row in rows))
    failed = sum("error" in row for row in rows)
    builders = ", ".join(sorted({row["builder"] for row in rows if "builder" in row}))
    done = f"{len(rows) - failed} of {len(rows)} engines built for {archs} with {builders}, tiny-llava at ratio 0.5."
    why = "Most of such an engine is compiled kernels: the weights take 2 MB in float16."
    return [*lines, "", f"{done} {why}"]


def _cell(rows: Sequence[Mapping[str, Any]]) -> str:
    failed = [row["arch"] for row in rows if "error" in row]
    if failed:
        return f"fails: {' '.join(failed)}"
    sizes = sorted({f"{row['bytes'] / 1e6:.1f}" for row in rows}, key=float)
    return sizes[0] if len(sizes) == 1 else f"{sizes[0]}-{sizes[-1]}"


if __name__ == "__main__":
    main()
