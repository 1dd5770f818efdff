"""Accuracy of tiny-llava on its 2,000 held-out questions: method x ratio x precision, as JSON and a Markdown table.

python scripts/accuracy_table.py -o docs/accuracy
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from lmmprune.compiler.bundle import Bundle
from lmmprune.compiler.evaluate import evaluate
from lmmprune.compiler.export import Request, export
from lmmprune.compiler.questions import load_questions
from lmmprune.compiler.runtime import Runtime

METHODS = ("freepruner", "cls", "uniform", "random")


def cells(ratios: tuple[float, ...]) -> list[tuple[str, float]]:
    """Return (method, ratio) of every row; the unpruned model comes first and once."""
    return [("unpruned", 0.0), *((method, ratio) for ratio in ratios for method in METHODS)]


def measure(method: str, ratio: float, *, int8: bool, positions: str | None, limit: int | None) -> dict[str, Any]:
    """Export one cell and ask it all questions."""
    with tempfile.TemporaryDirectory() as folder:
        report = export(
            Request(
                model="tiny-llava",
                output=Path(folder) / "bundle",
                method="freepruner" if method == "unpruned" else method,
                ratio=ratio,
                int8=int8,
                positions=positions,
            )
        )
        result = evaluate(Runtime(Bundle.open(Path(folder) / "bundle")), load_questions("tiny-llava")[:limit])
    return {
        "method": method,
        "ratio": ratio,
        "int8": int8,
        "positions": report.manifest.positions,
        "tokens": report.manifest.image_tokens,
        **result.as_dict(),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table: one row per method and ratio, one column per precision, points with their 95 % interval."""
    lines = ["| method | removed | tokens | fp32 | int8 |", "|---|---|---|---|---|"]
    found = {(row["method"], row["ratio"], row["int8"]): row for row in rows}
    for method, ratio in dict.fromkeys((row["method"], row["ratio"]) for row in rows):
        first = found[method, ratio, False]
        texts = [_points(found[method, ratio, int8]) for int8 in (False, True)]
        lines.append(f"| {method} | {ratio:.0%} | {first['tokens']} | {texts[0]} | {texts[1]} |")
    return "\n".join(lines) + "\n"


def _points(row: dict[str, Any]) -> str:
    low, high = row["interval_95"]
    return f"{100 * row['accuracy']:.1f} ({100 * low:.1f}-{100 * high:.1f})"


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("docs/accuracy"), show_default=True)
@click.option("--ratio", "ratios", type=float, multiple=True, default=(0.5, 0.75), show_default=True)
@click.option("--positions", type=click.Choice(["contiguous", "original"]), help="[default: the method's]")
@click.option("--limit", type=int, help="Ask only the first so many questions.")
def main(output: Path, ratios: tuple[float, ...], positions: str | None, limit: int | None) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    rows = []
    grid = [(method, ratio, int8) for method, ratio in cells(ratios) for int8 in (False, True)]
    with Progress(transient=True) as bar:
        task = bar.add_task("cells", total=len(grid))
        for method, ratio, int8 in grid:
            bar.update(task, description=f"{method} {ratio:.0%} {'int8' if int8 else 'fp32'}")
            rows.append(measure(method, ratio, int8=int8, positions=positions, limit=limit))
            bar.advance(task)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(markdown(rows), encoding="utf-8")
    click.echo(markdown(rows))


if __name__ == "__main__":
    main()
