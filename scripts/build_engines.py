"""Build TensorRT-RTX engines with every method, in several types, for several architectures. No GPU is needed.

    python scripts/build_engines.py      # tiny-llava; writes docs/results/engines_tiny_llava
    python scripts/build_engines.py --model llava-1.5-7b --layers 2 --precision float16 --arch sm89 \
        --work /tmp/work -o docs/results/engines_llava7b

Of each method those graphs are built that it cuts in; the first row has both, unpruned. Weights of other models than
tiny-llava are synthetic.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import results
from rich.progress import Progress

from lmmprune.compiler.build.build import build
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.trace import shared_trace
from lmmprune.compiler.export.values import Int8, Ratio
from lmmprune.errors import InputError, LmmpruneError
from lmmprune.passes.methods import METHODS

PRECISIONS: Mapping[str, Mapping[str, Any]] = {
    "float32": {"dtype": "float32"},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "INT8": {"int8": Int8(), "calibration_samples": 2},
}
ARCHS = ("sm86", "sm89", "sm120")
UNPRUNED = "unpruned"
OUTPUT = Path("docs/results/engines_tiny_llava")


@click.command()
@click.option("--model", default="tiny-llava", show_default=True)
@click.option("--layers", type=int, help="Decoder layers; with synthetic weights. [default: the model's own]")
@click.option("--precision", "precisions", multiple=True, type=click.Choice(list(PRECISIONS)), default=list(PRECISIONS))
@click.option("--arch", "archs", multiple=True, default=ARCHS, show_default=True)
@click.option("--method", "methods", multiple=True, default=(UNPRUNED, *sorted(METHODS)), help="[default: all]")
@click.option("--ratio", type=float, default=0.5, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Folder for the bundle, 5 GB at LLaVA-7B's widths.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=OUTPUT, show_default=True)
def main(
    model: str,
    layers: int | None,
    precisions: Sequence[str],
    archs: Sequence[str],
    methods: Sequence[str],
    ratio: float,
    work: Path | None,
    output: Path,
) -> None:
    """Write OUTPUT.json and its part of engines.md beside it."""
    traced, rows, refused = shared_trace(), [], set()
    weights = {} if layers is None else {"weights": "dummy", "layers": layers}
    with tempfile.TemporaryDirectory(dir=work) as folder, Progress(transient=True) as bar:
        task = bar.add_task("", total=len(methods) * len(precisions) * len(archs))
        for method in methods:
            pruned = {} if method == UNPRUNED else {"method": method, "tokens": Ratio(ratio)}
            for precision in precisions:
                bundle = Path(folder) / "bundle"
                request = Request(
                    model=model, output=bundle, target="tensorrt-rtx", **weights, **pruned, **PRECISIONS[precision]
                )
                try:
                    manifest = export(request, traced=traced).manifest
                except InputError:  # a decoder of few layers has no room for every schedule
                    refused.add(method)
                    bar.advance(task, len(archs))
                    continue
                schedule = manifest.schedule
                sites = {
                    "vision": [stage.site for stage in schedule if not stage.in_decoder],
                    "decoder": [stage.site for stage in manifest.decoder_sites],
                }
                if manifest.selection is not None:
                    sites["selection"] = [stage.site for stage in schedule if stage.before_layers]
                for arch in archs:
                    bar.update(task, description=f"{method} {precision} {arch}")
                    for row in _engines(bundle, arch, [name for name in sites if sites[name] or not schedule]):
                        common = {"method": method, "precision": precision, "arch": arch}
                        rows.append(common | row | {"sites": sites[row["component"]]})
                    bar.advance(task)
                shutil.rmtree(bundle)
    text = table(rows, f"{model}{f', {layers} decoder layers' if layers else ''}, ratio {ratio:g}")
    if refused:
        text += f"\n\nNot at this depth: {', '.join(f'`{method}`' for method in sorted(refused))}."
    results.write(output, rows, text, page=output.with_name("engines.md"))
    click.echo(text)


def _engines(bundle: Path, arch: str, components: Sequence[str]) -> Iterator[dict[str, Any]]:
    for component in components:
        try:
            (built,) = build(bundle, "tensorrt-rtx", arch=arch, components=[component])
        except LmmpruneError as error:
            yield {"component": component, "error": str(error)}
            continue
        record = built.record
        builder = f"{record.builder} {record.version}"
        yield {"component": component, "bytes": record.bytes, "seconds": record.seconds, "builder": builder}


def table(rows: Sequence[Mapping[str, Any]], what: str) -> str:
    """Return megabytes per method, graph and type: smallest and largest of the architectures."""
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    lines = [
        f"| method | engine | sites | {' | '.join(f'{name}, MB' for name in precisions)} | built in, s |",
        f"|---|---|---|{'--:|' * len(precisions)}--:|",
    ]
    for method, component in dict.fromkeys((row["method"], row["component"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["component"]) == (method, component)]
        cells = [_sizes([row for row in mine if row["precision"] == precision]) for precision in precisions]
        seconds = [row["seconds"] for row in mine if "seconds" in row]
        took = f"{min(seconds):.1f}-{max(seconds):.1f}" if seconds else "-"
        lines.append(f"| {method} | {component} | {_span(mine[0]['sites'])} | {' | '.join(cells)} | {took} |")
    failed = sum("error" in row for row in rows)
    archs = ", ".join(dict.fromkeys(row["arch"] for row in rows))
    builders = ", ".join(sorted({row["builder"] for row in rows if "builder" in row}))
    return "\n".join(
        [*lines, "", f"{len(rows) - failed} of {len(rows)} engines built for {archs} with {builders}; {what}."]
    )


def _span(sites: Sequence[str]) -> str:
    return "-" if not sites else sites[0] + (f" .. {sites[-1]}" if len(sites) > 1 else "")


def _sizes(rows: Sequence[Mapping[str, Any]]) -> str:
    failed = [row["arch"] for row in rows if "error" in row]
    if failed:
        return f"fails: {' '.join(failed)}"
    sizes = sorted({f"{row['bytes'] / 1e6:.1f}" for row in rows}, key=float)
    return sizes[0] if len(sizes) == 1 else f"{sizes[0]}-{sizes[-1]}"


if __name__ == "__main__":
    main()
