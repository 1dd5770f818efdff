"""Damage, kill and tempt lmmprune in every way that is known, and print the table of what came of it.

python scripts/fault_campaign.py --seconds 600
python scripts/fault_campaign.py --seconds 20 --only kills --seed 7
python scripts/fault_campaign.py --seconds 600 -o docs/results/fault_campaign  # also writes OUTPUT.md and OUTPUT.json

A section is a file of scripts/faults/ with ``run(seconds, seed) -> list[Row]``: it makes what it damages below a folder
of its own, draws from ``random.Random(seed)`` alone, goes on until the seconds are over (``while_time_lasts``), and
counts each try once (``Rows("section")["kind"].count(fault or None, example)``). ``command_line.call`` and ``fault_of``
run a command and judge how it ended. To add one, write the file and name it in ``SECTIONS`` below, with the share of
the time that it gets. Exit code 1: something happened that must not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent / "tests"):  # the sections; the small bundles of the tests
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

if TYPE_CHECKING:
    from faults.tally import Row

SECTIONS = {
    "kills": 3,
    "containment": 1,
    "environments": 2,
    "manifests": 2,
    "tampering": 2,
    "command_lines": 2,
    "method_files": 1,
    "records": 1,
    "served": 1,
}
"""Module of scripts/faults/ -> its share of the time."""


@click.command()
@click.option("--seconds", default=60.0, show_default=True, type=click.FloatRange(min=0), help="For all sections.")
@click.option("--seed", default=0, show_default=True, help="The same seed damages the same way.")
@click.option("--only", multiple=True, type=click.Choice([*SECTIONS]), help="This section; may be repeated.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write OUTPUT.md and OUTPUT.json too.")
def main(seconds: float, seed: int, only: tuple[str, ...], output: Path | None) -> None:
    """Print the table; exit with 1 if anything happened that must not."""
    chosen = [name for name in SECTIONS if not only or name in only]
    total = sum(SECTIONS[name] for name in chosen)
    rows: list[Row] = []
    with _own_folder():
        for name in chosen:
            click.echo(f"{name}, seed {seed}", err=True)
            rows += run_section(name, seconds * SECTIONS[name] / total, seed)
    text = table(rows, seed)
    click.echo(text)
    if output is not None:
        import results

        results.write(output, {"seed": seed, "rows": [dataclasses.asdict(row) for row in rows]}, text)
    sys.exit(any(row.found for row in rows))


@contextlib.contextmanager
def _own_folder() -> Iterator[None]:
    """Let all that is made lie in one folder, with caches of its own: this machine's must not stand in for a run."""
    before = dict(os.environ), tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="lmmprune-faults-") as folder:
        os.chmod(folder, 0o755)  # a user without rights comes as far as what is closed for him
        os.environ |= {"LMMPRUNE_CACHE": f"{folder}/cache", "LMMPRUNE_TESTS": folder}
        tempfile.tempdir = folder
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before[0])
            tempfile.tempdir = before[1]


def run_section(name: str, seconds: float, seed: int) -> list[Row]:
    """Run one section."""
    rows: list[Row] = importlib.import_module(f"faults.{name}").run(seconds, seed)
    return rows


def table(rows: list[Row], seed: int) -> str:
    """Return the rows as a Markdown table, with what went wrong below it."""
    from faults.tally import FAULTS

    lines = [f"Seed {seed}.", "", f"| section | what | tries | {' | '.join(FAULTS)} |", "|---|---|" + "---:|" * 5]
    for row in rows:
        counts = " | ".join(str(row.found.get(fault, 0)) for fault in FAULTS)
        lines.append(f"| {row.section} | {row.kind} | {row.tries} | {counts} |")
    sums = " | ".join(str(sum(row.found.get(fault, 0) for row in rows)) for fault in FAULTS)
    lines += [f"| all | | {sum(row.tries for row in rows)} | {sums} |", ""]
    lines += [f"* {row.section}, {row.kind}: {example}" for row in rows for example in row.examples]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
