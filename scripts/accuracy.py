"""Turn studies into the page of accuracies: all methods at all ratios, and by kind of question.

lmmprune study --model models/small_llava --data models/small_llava/heldout/heldout.jsonl --methods all \
  --ratios 0.5,0.75,0.9 --no-timing -o STUDY/
python scripts/accuracy.py STUDY/ -o docs/results/accuracy_small_llava --kinds 0.75
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent))  # scripts/, where these two lie

import results
from study_rows import Row, read_rows

_SHARE = "accuracy_of_"


def share(row: Row, name: str) -> str:
    """Return a share in percent with its interval."""
    value, low, high = (100 * float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{value:.1f} ({low:.1f}-{high:.1f})"


def by_ratio(rows: list[Row]) -> str:
    """Return variants x ratios; a cell that can't be had is a dash, ascending by the name of the variant."""
    ratios = sorted({float(row["ratio"]) for row in rows} - {0.0})
    cells = {(row["variant"], float(row["ratio"])): row for row in rows}
    lines = [
        "| method | " + " | ".join(f"{100 * ratio:g}% removed" for ratio in ratios) + " |",
        "|---|" + "---|" * len(ratios),
        f"| unpruned | {share(cells['', 0.0], 'accuracy')} |" + " |" * (len(ratios) - 1),
    ]
    for variant in sorted({row["variant"] for row in rows} - {""}):
        found = [cells[variant, ratio] for ratio in ratios]
        lines.append(
            f"| {variant} | " + " | ".join("-" if row["refused"] else share(row, "accuracy") for row in found) + " |"
        )
    return "\n".join(lines)


def by_kind(rows: list[Row], ratio: float) -> str:
    """Return variants x kinds at one ratio, the most accurate first."""
    chosen = [row for row in rows if not row["refused"] and float(row["ratio"]) in (0.0, ratio)]
    chosen.sort(key=lambda row: (row["variant"] != "", -float(row["accuracy"])))
    kinds = [name.removeprefix(_SHARE) for name in chosen[0] if name.startswith(_SHARE)]
    kinds = [kind for kind in kinds if not kind.endswith(("_low", "_high"))]
    lines = ["| method | all | " + " | ".join(kinds) + " |", "|---|--:|" + "--:|" * len(kinds)]
    for row in chosen:
        values = [row["accuracy"], *(row[_SHARE + kind] for kind in kinds)]
        shares = " | ".join(f"{100 * float(value):.1f}" for value in values)
        lines.append(f"| {row['variant'] or 'unpruned'} | {shares} |")
    return "\n".join(lines)


def figures(rows: list[Row]) -> list[dict[str, Any]]:
    """Return what the JSON file holds: every column that isn't empty."""
    return [{name: value for name, value in row.items() if value} for row in rows]


@click.command()
@click.argument("study", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Without a suffix.")
@click.option("--page", type=click.Path(path_type=Path), default=Path("docs/results/accuracy.md"), show_default=True)
@click.option("--kinds", type=float, help="Write a table by kind of question, too, at this ratio.")
def main(study: Path, output: Path, page: Path, kinds: float | None) -> None:
    """Write OUTPUT.json and its part of PAGE."""
    rows = [row for row in read_rows(study) if not row["precision"].startswith("int")]
    text = by_ratio(rows)
    if kinds is not None:
        text += f"\n\nBy kind of question, {100 * kinds:g}% removed:\n\n{by_kind(rows, kinds)}"
    results.write(output, figures(rows), text, page=page)


if __name__ == "__main__":
    main()
