"""Try every command on every layout of tests/hub_layouts, and print the table checkpoint x command.

python scripts/hub_matrix.py                             # all: minutes
python scripts/hub_matrix.py --only SmolVLM --json
python scripts/hub_matrix.py -o docs/results/hub_matrix  # also writes OUTPUT.md and OUTPUT.json

The layouts are the hub's, file by file, at tiny sizes and with random weights: the table says what is read, traced,
pruned and answered as transformers does, and nothing of accuracy. It needs the two packages that
tests/vocabulary-requirements.txt names.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

if TYPE_CHECKING:
    from hub_layouts.layout import Layout
    from hub_layouts.matrix import Cell

# fastv cuts behind the second decoder layer, and there must be one behind it.
_LAYERS = 3


@click.command()
@click.option("--only", multiple=True, help="A layout whose name holds this; may be given more than once.")
@click.option("--command", "commands", multiple=True, help="Of the table's columns; default: all.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write OUTPUT.md and OUTPUT.json too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
def main(only: tuple[str, ...], commands: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    """Print the table; exit with 1 if anything failed."""
    from hub_layouts import LAYOUTS
    from hub_layouts.matrix import COMMANDS

    from lmmprune.compiler.cli.output import print_json

    if unknown := sorted(set(commands) - set(COMMANDS)):
        raise click.UsageError(f"no command '{unknown[0]}'; there are {', '.join(COMMANDS)}")
    chosen = [layout for name, layout in LAYOUTS.items() if not only or any(part in name for part in only)]
    if not chosen:
        raise click.UsageError(f"no layout's name holds {' or '.join(only)}; there are {', '.join(LAYOUTS)}")
    cells = _try(chosen, list(commands) or list(COMMANDS))
    packages = ("transformers", "torch", "onnxruntime")
    record = {
        "versions": {name: importlib.metadata.version(name).split("+")[0] for name in packages},
        "cells": [dataclasses.asdict(cell) for cell in cells],
    }
    page = _page(chosen, cells, record["versions"])
    if as_json:
        print_json(record)
    else:
        click.echo(page)
    if output is not None:
        import results

        results.write(output, record, page)
    sys.exit(any(cell.outcome == "failed" for cell in cells))


def _try(layouts: list[Layout], commands: list[str]) -> list[Cell]:
    from hub_layouts.matrix import Tried

    cells = []
    for layout in layouts:
        with tempfile.TemporaryDirectory(prefix="lmmprune-hub-") as work:
            tried = Tried(layout, Path(work), layers=_LAYERS)
            # What isn't served is refused before the command matters.
            for command in commands if layout.served else commands[:1]:
                click.echo(f"{layout.name}: {command}", err=True)
                cells.append(tried.try_command(command))
    return cells


def _page(layouts: list[Layout], cells: list[Cell], versions: dict[str, str]) -> str:
    """Return the table in Markdown, and below it the line of every refusal and failure."""
    commands = list(dict.fromkeys(cell.command for cell in cells))
    notes: list[str] = []

    def entry(layout: Layout, command: str) -> str:
        found = next((c for c in cells if (c.layout, c.command) == (layout.name, command)), None)
        if found is None:
            return "" if layout.served else entry(layout, commands[0])
        if found.outcome == "served":
            return "served"
        if found.line not in notes:
            notes.append(found.line)
        return f"{found.outcome} [{notes.index(found.line) + 1}]"

    rows = [["checkpoint", "family", *commands], ["---"] * (2 + len(commands))]
    rows += [[_name(layout), layout.family or "-", *(entry(layout, c) for c in commands)] for layout in layouts]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    answers = [cell.line for cell in cells if cell.command == "plain" and cell.outcome == "served"]
    said = (
        f"`plain` is the unpruned export: {len(answers)} of {len(answers)} served ones have transformers' prompt, pixel"
        " values and answer, token for token; the others are also verified. "
        f"With {', '.join(f'{name} {version}' for name, version in versions.items())}."
    )
    return "\n".join([*lines, "", said, "", *(f"[{n}] {line}  " for n, line in enumerate(notes, start=1))]).rstrip()


def _name(layout: Layout) -> str:
    return layout.name if not layout.hub_id or layout.name in layout.hub_id else f"{layout.name}, {layout.hub_id}"


if __name__ == "__main__":
    main()
