"""``lmmprune methods``: the pruning methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmmprune.compiler.cli.output import json_option, print_json, show

if TYPE_CHECKING:
    from rich.table import Table

    from lmmprune.passes.methods import Method


@click.command()
@click.option("--method-file", type=click.Path(path_type=Path), help="Python file that defines more methods.")
@json_option
def command(method_file: Path | None, as_json: bool) -> None:
    """List the pruning methods: where they cut, how many tokens stay, their parameters, and what in them is exact."""
    from lmmprune.errors import require

    require("onnx_ir", "export")
    from lmmprune.passes.methods import find_methods

    rows = [_describe(name, method) for name, method in find_methods(method_file).items()]
    if as_json:
        print_json(rows)
    else:
        show(_table(rows))


def _describe(name: str, method: type[Method]) -> dict[str, Any]:
    return {
        "name": name,
        "sites": method.sites,
        "schedule": method.schedule,
        "positions": method.positions,
        "needs_cls": method.needs_cls,
        "parameters": method().parameters,
        "reference": method.reference,
        "exactness": method.exactness,
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    """Return a table that fits into 100 columns: cells of several lines, a gap between methods."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title, width in (("method", 11), ("cut at, tokens left", 26), ("parameters", 26), ("what is exact", 26)):
        table.add_column(title, max_width=width, overflow="fold")
    for row in rows:
        parameters = ", ".join(f"{name}={_text(value)}" for name, value in row["parameters"].items())
        cls = ["needs CLS"] if row["needs_cls"] else []
        cells = (
            [row["name"]],
            [row["sites"], row["schedule"]],
            [*filter(None, [parameters]), *cls, f"{row['positions']} positions"],
            [row["reference"], row["exactness"]],
        )
        table.add_row(*(Text("\n".join(lines)) for lines in cells))
        table.add_section()
    return table


def _text(value: Any) -> str:
    """Return a value as ``--set`` takes it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
