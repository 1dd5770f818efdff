"""The rows of a finished study, which several pages are made of."""

from __future__ import annotations

import csv
from pathlib import Path

import click

Row = dict[str, str]


def read_rows(study: Path) -> list[Row]:
    """Return what results.csv holds, a line per cell.

    Raises:
        click.ClickException: The study isn't finished, or measured no accuracies.
    """
    file = study / "results.csv"
    if not file.is_file():
        raise click.ClickException(f"'{study}' has no results.csv: end its 'lmmprune study' first")
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not any(row.get("accuracy") for row in rows):
        raise click.ClickException(f"'{study}' has no accuracies: its questions had no answers")
    return rows
