"""Build TensorRT-RTX engines of every method at LLaVA-1.5-7B's sizes: CLIP-L, two decoder layers, synthetic weights.

python scripts/llava7b/build_llava7b_engines.py -o docs/llava7b_engines --work /tmp/work
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from lmmprune.compiler.build.build import build
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.values import Ratio
from lmmprune.models.canonical import shared_trace
from lmmprune.passes.methods import METHODS


@click.command()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("docs/llava7b_engines"), show_default=True
)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Directory with 5 GB free.")
@click.option("--arch", default="sm89", show_default=True)
@click.option("--ratio", type=float, default=0.5, show_default=True)
@click.option("--layers", type=int, default=2, show_default=True)
@click.option("--method", "methods", multiple=True, default=tuple(METHODS), help="[default: all]")
def main(output: Path, work: Path, arch: str, ratio: float, layers: int, methods: tuple[str, ...]) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    traced = shared_trace()
    rows: list[dict[str, Any]] = []
    bundle = work / "bundle"
    with Progress(transient=True) as bar:
        task = bar.add_task("", total=len(methods))
        for method in methods:
            bar.update(task, description=method)
            request = Request(
                model="llava-1.5-7b",
                output=bundle,
                method=method,
                tokens=Ratio(ratio),
                weights="dummy",
                layers=layers,
                target="tensorrt-rtx",
                force=True,
            )
            manifest = export(request, traced=traced).manifest
            # The other component is the unpruned one, the same for all methods.
            touched = {"decoder" if stage.in_decoder else "vision" for stage in manifest.schedule}
            for entry in build(bundle, "tensorrt-rtx", arch=arch, components=sorted(touched, reverse=True)):
                record = entry.record
                sites = [
                    stage.site for stage in manifest.schedule if stage.in_decoder == (record.component == "decoder")
                ]
                rows.append(
                    {
                        "method": method,
                        "component": record.component,
                        "sites": sites,
                        "tokens": manifest.average_tokens,
                        "bytes": record.bytes,
                        "seconds": record.seconds,
                        "decomposed_attention": record.decomposed_attention,
                        "builder": f"{record.builder} {record.version}",
                    }
                )
            shutil.rmtree(bundle)
            bar.advance(task)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    lines = ["| method | engine | sites | MB | built in, s |", "|---|---|---|---|---|"]
    for row in rows:
        site = row["sites"][0] + (f" .. {row['sites'][-1]}" if len(row["sites"]) > 1 else "")
        size = f"{row['bytes'] / 1e6:.0f}"
        lines.append(f"| {row['method']} | {row['component']} | {site} | {size} | {row['seconds']:.0f} |")
    output.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
