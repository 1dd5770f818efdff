"""Turn a study with --int8, or one with --precisions, into the page that says whether pruning and integers multiply.

M=models/small_llava
lmmprune study --model $M --data $M/heldout/heldout.jsonl --ratios 0.5,0.75 --int8 \
  --methods pyramiddrop,divprune,cls,freepruner,ficoco-v,random -o STUDY/
python scripts/interaction.py STUDY/ -o docs/results/interaction
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parent))  # scripts/, where these two lie

import results
from study_rows import Row, read_rows

_TIMES = {"ttft_ms": "time to first token", "ms_per_token": "time per token"}


def pairs(rows: list[Row], precision: str) -> list[tuple[Row, Row]]:
    """Return the rows in floating point and in integers of every variant that has both, the unpruned one first."""
    by_name = {row["cell"]: row for row in rows if not row["refused"]}
    end = f"-{precision}"
    return [(row, by_name[name + end]) for name, row in by_name.items() if name + end in by_name]


def precisions(rows: list[Row]) -> list[str]:
    """Return the integers that there are.

    Raises:
        click.ClickException: There are none.
    """
    found = [row["precision"] for row in rows if row["precision"] in ("int8", "int4", "int4-gptq")]
    if not found:
        raise click.ClickException(
            "the study has no variant in integers: give its 'lmmprune study' --int8 or --precisions"
        )
    return list(dict.fromkeys(found))


def points(row: Row, name: str) -> str:
    """Return points with their interval."""
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{value:+.2f} ({low:+.2f}..{high:+.2f})"


def overlap(row: Row) -> str:
    """Return the mean IoU of the sets that both keep, at the site where it is lowest."""
    values = [value for name, value in row.items() if name.startswith("iou_") and name.endswith("_mean") and value]
    return f"{min(map(float, values)):.3f}" if values else ""


def label(row: Row) -> str:
    """Return a variant's name for people."""
    return f"{row['variant']}, {100 * float(row['ratio']):g}%" if row["variant"] else "unpruned"


def accuracy_table(found: list[tuple[Row, Row]]) -> str:
    """Return accuracy in both precisions and the interaction, a line per variant."""
    kind = found[0][1]["precision"].upper()
    lines = [
        f"| variant | {found[0][0]['precision']}, % right | {kind} | {kind} changes, points"
        " | interaction, points | kept sets, IoU |",
        "|---|---|---|---|---|---|",
    ]
    for floats, integers in found:
        value, low, high = (100 * float(floats[f"accuracy{end}"]) for end in ("", "_low", "_high"))
        pruned = bool(floats["variant"])
        interaction = points(integers, "accuracy_interaction_points") if pruned else ""
        lines.append(
            f"| {label(floats)} | {value:.1f} ({low:.1f}-{high:.1f}) | {100 * float(integers['accuracy']):.1f} "
            f"| {points(integers, 'integers_cost_points')} | {interaction} | {overlap(integers)} |"
        )
    return "\n".join(lines)


def time_table(found: list[tuple[Row, Row]], metric: str) -> str:
    """Return how much faster pruning, integers and both are, and both over the product, a line per variant."""
    name = f"{metric}_speedup"
    alone, kind = float(found[0][1][name]), found[0][1]["precision"].upper()
    lines = [
        f"| {_TIMES[metric]} | pruning | {kind} | product | both | both / product |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for floats, integers in found[1:]:
        pruning, both = float(floats[name]), float(integers[name])
        value, low, high = (float(integers[f"{metric}_interaction{end}"]) for end in ("", "_low", "_high"))
        lines.append(
            f"| {label(floats)} | {pruning:.2f}x | {alone:.2f}x | {pruning * alone:.2f}x | {both:.2f}x "
            f"| {value:.2f} ({low:.2f}-{high:.2f}) |"
        )
    return "\n".join(lines)


@click.command()
@click.argument("study", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Without a suffix.")
@click.option("--page", type=click.Path(path_type=Path), default=Path("docs/results/study.md"), show_default=True)
def main(study: Path, output: Path, page: Path) -> None:
    """Write OUTPUT.json and its part of PAGE."""
    rows = read_rows(study)
    tables, kept = [], {}
    for precision in precisions(rows):
        found = pairs(rows, precision)
        tables.append(accuracy_table(found))
        tables += [time_table(found, metric) for metric in _TIMES if found[0][1].get(f"{metric}_speedup")]
        kept |= {row["cell"]: {name: value for name, value in row.items() if value} for pair in found for row in pair}
    results.write(output, list(kept.values()), "\n\n".join(tables), page=page)


if __name__ == "__main__":
    main()
