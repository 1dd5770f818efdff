"""``lmmprune methods``: the pruning methods."""

from __future__ import annotations

from typing import Any

import click

from lmmprune.compiler.cli.output import json_option, print_json, show, table


@click.command()
@json_option
def command(as_json: bool) -> None:
    """List the pruning methods: where they cut, their parameters, and what in them is exact."""
    from lmmprune.errors import require

    require("onnx_ir", "export")
    from lmmprune.passes.methods import METHODS

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "site": method.site,
            "positions": method.positions,
            "parameters": method().parameters,
            "reference": method.reference,
            "exactness": method.exactness,
        }
        for name, method in METHODS.items()
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        row["parameters"] = ", ".join(f"{name}={value}" for name, value in row["parameters"].items())
    columns = list(rows[0])
    show(table(columns, [[str(row[column]) for column in columns] for row in rows]))
