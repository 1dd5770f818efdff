"""Accuracy of tiny-llava on its 2,000 held-out questions: every method and ratio, as JSON, a Markdown table, a chart.

python scripts/tiny_llava/accuracy_table.py -o docs/accuracy
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.questions import load_questions
from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.values import Int8, Ratio
from lmmprune.compiler.measure.evaluate import evaluate
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.errors import InputError
from lmmprune.models.canonical import Canonical, shared_trace
from lmmprune.models.source import Source
from lmmprune.passes.methods import METHODS

Cell = tuple[str, float, bool, str | None]
_TRACED = shared_trace()


def cells(methods: tuple[str, ...], ratios: tuple[float, ...], int8: bool, positions: str | None) -> list[Cell]:
    """Return (method, ratio, int8, positions) of every cell; the unpruned model comes first and once."""
    rows = [("unpruned", 0.0), *((method, ratio) for ratio in ratios for method in methods)]
    return [(method, ratio, quantized, positions) for method, ratio in rows for quantized in (False, True)[: 1 + int8]]


def measure(cell: Cell, limit: int | None) -> dict[str, Any]:
    """Export one cell and ask it all questions; a schedule that this model can't have is a row with the reason."""
    method, ratio, int8, positions = cell
    row: dict[str, Any] = {"method": method, "ratio": ratio, "int8": int8}
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        name = "freepruner" if method == "unpruned" else method
        quantized = Int8() if int8 else None
        request = Request(
            model="tiny-llava", output=bundle, method=name, tokens=Ratio(ratio), int8=quantized, positions=positions
        )
        try:
            report = export(request, traced=_traced)
        except InputError as error:
            return {**row, "refused": str(error)}
        result = evaluate(Runtime(Bundle.open(bundle), threads=1), load_questions("tiny-llava")[:limit])
    manifest = report.manifest
    return {
        **row,
        "positions": manifest.positions if manifest.method is None else manifest.llm_positions,
        "tokens": manifest.average_tokens,
        "prefill_flops": manifest.flops["prefill"]["after"],
        "vision_flops": manifest.flops["vision"]["after"],
        **result.as_dict(),
    }


def _traced(source: Source) -> Canonical:
    return _TRACED(source)


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table: a row per method, a column per ratio and precision; points with their 95 % interval."""
    columns = list(dict.fromkeys((row["ratio"], row["int8"]) for row in rows if row["method"] != "unpruned"))
    found = {(row["method"], row["ratio"], row["int8"]): row for row in rows}
    both = any(int8 for _, int8 in columns)
    heads = [f"{ratio:.0%} removed{(' int8' if int8 else ' fp32') if both else ''}" for ratio, int8 in columns]
    lines = [f"| method | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for row in rows:
        if row["method"] == "unpruned":
            lines.append(f"| unpruned{', int8' if row['int8'] else ''} | {_points(row)} " + "| " * len(heads[1:]) + "|")
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != "unpruned"):
        texts = [_points(found[method, ratio, int8]) for ratio, int8 in columns]
        lines.append(f"| {method} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def _points(row: dict[str, Any]) -> str:
    if "refused" in row:
        return "-"
    low, high = row["interval_95"]
    return f"{100 * row['accuracy']:.1f} ({100 * low:.1f}-{100 * high:.1f})"


# One look per method: families share a colour, members differ by marker.
_COLOURS = {
    **dict.fromkeys(("random", "uniform"), "#888888"),
    **dict.fromkeys(("freepruner", "cls", "vtc-cls", "vispruner", "divprune"), "#4477aa"),
    **dict.fromkeys(("prumerge", "prumerge+", "visionzip"), "#228833"),
    **dict.fromkeys(("ficoco-v", "tome"), "#ccbb44"),
    **dict.fromkeys(("fastv", "sparsevlm", "pyramiddrop", "ficoco-l"), "#ee6677"),
    **dict.fromkeys(("inflection", "aim", "ficoco-vl"), "#aa3377"),
}
_FAMILIES = {
    "#888888": "no score",
    "#4477aa": "dropping at the vision output",
    "#228833": "merging at the vision output",
    "#ccbb44": "merging inside the encoder",
    "#ee6677": "inside the decoder",
    "#aa3377": "two stages",
}
_MARKERS = "osD^v<>P"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy over average tokens per decoder layer, one panel per family of methods, all others in grey."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if not row["int8"] and "refused" not in row]
    whole = next(row for row in rows if row["method"] == "unpruned")
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["method"] != "unpruned":
            curves.setdefault(row["method"], [(whole["tokens"], 100 * whole["accuracy"])]).append(
                (row["tokens"], 100 * row["accuracy"])
            )
    figure = Figure(figsize=(11, 6), layout="constrained")
    for axes, (colour, family) in zip(
        figure.subplots(2, 3, sharex=True, sharey=True).flat, _FAMILIES.items(), strict=True
    ):
        members = [name for name in curves if _COLOURS.get(name) == colour]
        for name, points in curves.items():
            if name not in members:
                axes.plot(*zip(*sorted(points), strict=True), color="#dddddd", linewidth=0.8, zorder=1)
        for marker, name in zip(_MARKERS, members, strict=False):
            axes.plot(*zip(*sorted(curves[name]), strict=True), color=colour, marker=marker, markersize=5, label=name)
        axes.set_title(family, fontsize=10, loc="left")
        axes.legend(fontsize=8, frameon=False, loc="lower right")
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"visual tokens per decoder layer, on average (of {whole['tokens']:g})", fontsize=10)
    figure.supylabel("answers right, %", fontsize=10)
    figure.savefig(path, dpi=130)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("docs/accuracy"), show_default=True)
@click.option("--ratio", "ratios", type=float, multiple=True, default=(0.5, 0.75, 0.9), show_default=True)
@click.option("--method", "methods", multiple=True, default=tuple(METHODS), help="[default: all]")
@click.option("--int8", is_flag=True, help="Measure every cell in INT8 too.")
@click.option("--positions", type=click.Choice(["contiguous", "original"]), help="[default: the method's]")
@click.option("--limit", type=int, help="Ask only the first so many questions.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Processes.")
def main(
    output: Path,
    ratios: tuple[float, ...],
    methods: tuple[str, ...],
    int8: bool,
    positions: str | None,
    limit: int | None,
    jobs: int,
) -> None:
    """Write OUTPUT.json, OUTPUT.md and OUTPUT.png."""
    grid = cells(methods, ratios, int8, positions)
    found: dict[Cell, dict[str, Any]] = {}
    context = multiprocessing.get_context("spawn")
    with Progress(transient=True) as bar, ProcessPoolExecutor(jobs, mp_context=context) as pool:
        task = bar.add_task("cells", total=len(grid))
        futures = {pool.submit(measure, cell, limit): cell for cell in grid}
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            bar.update(task, advance=1, description="{} {:.0%}".format(*futures[future][:2]))
    rows = [found[cell] for cell in grid]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(markdown(rows), encoding="utf-8")
    if not positions:
        draw(rows, output.with_suffix(".png"))
    click.echo(markdown(rows))


if __name__ == "__main__":
    main()
