"""``lmmprune methods``: the pruning methods."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmmprune.compiler.cli import completion
from lmmprune.compiler.cli.command import Command, argument
from lmmprune.compiler.cli.options import method_file_option
from lmmprune.compiler.cli.output import json_option, print_json, show
from lmmprune.compiler.cli.table import Column, Table, details, table

if TYPE_CHECKING:
    from lmmprune.passes.methods import Method


@click.command("methods", cls=Command, example="lmmprune methods fastv")
@argument("name", required=False, type=completion.METHOD)
@method_file_option("Python file that defines more methods.")
@json_option
def command(name: str | None, method_file: Path | None, as_json: bool) -> None:
    """List the pruning methods: where they cut, how many tokens stay, their parameters, and what in them is exact.

    With NAME, say more of one of them, with the types of its parameters.
    """
    from lmmprune.errors import InputError, require, suggestion

    require("onnx_ir", "export")
    from lmmprune.passes.methods import find_methods

    methods = find_methods(method_file)
    if name is None:
        rows = [_describe(each, method) for each, method in methods.items()]
        if as_json:
            print_json(rows)
        else:
            show(_table(rows, methods))
        return
    if name not in methods:
        raise InputError(f"no method '{name}'{suggestion(name, methods)}")
    found = _describe(name, methods[name]) | {"summary": _summary(methods[name]), "options": _options(methods[name])}
    if as_json:
        print_json(found)
        return
    show(
        details(
            {
                "method": name,
                "what it does": found["summary"],
                "cut at": found["sites"],
                "tokens left": found["schedule"],
                "positions": methods[name].numbering(),
                "takes --schedule": _schedule(methods[name]),
                "needs CLS": "yes" if found["needs_cls"] else "no",
                "reference": found["reference"],
                "what is exact": found["exactness"],
            }
        )
    )
    if found["options"]:
        columns = ["parameter, for --set", "takes", "default"]
        rows_shown = [[row["name"], row["takes"], _text(row["default"])] for row in found["options"]]
        show(table(columns, rows_shown))
    else:
        show("It has no parameters.")


def _describe(name: str, method: type[Method]) -> dict[str, Any]:
    return {
        "name": name,
        "sites": method.sites,
        "schedule": method.schedule,
        "positions": method.positions,
        "published_positions": method.published_positions,
        "needs_cls": method.needs_cls,
        "schedule_sites": list(method.movable),
        "parameters": method().parameters,
        "reference": method.reference,
        "exactness": method.exactness,
    }


def _schedule(method: type[Method]) -> str:
    sites = [f"{kind}_L" for kind in method.movable]
    return f"yes, of {' and '.join(sites)}" if sites else "no"


def _summary(method: type[Method]) -> str:
    """Return what a method's own text says, without what other rows say: the paper, and how it is written."""
    # A dataclass without a text gets its signature as one.
    text = inspect.cleandoc(method.__dict__.get("__doc__") or "").split("\n\n")
    kept = [part for part in text if not part.startswith(("Reference", "Attributes", f"{method.__name__}("))]
    return "\n".join(" ".join(part.replace("``", "").split()) for part in kept) or "(its class says nothing)"


def _options(method: type[Method]) -> list[dict[str, Any]]:
    from lmmprune.passes.methods.options import field_type, kind_name

    parameters = method().parameters
    return [
        {"name": field.name, "takes": kind_name(field_type(method, field)), "default": parameters[field.name]}
        for field in dataclasses.fields(method)
    ]


def _table(rows: list[dict[str, Any]], methods: dict[str, type[Method]]) -> Table:
    """Return a table that fits into 100 columns: cells of several lines, a gap between methods."""
    cells = []
    for row in rows:
        parameters = ", ".join(f"{name}={_text(value)}" for name, value in row["parameters"].items())
        cls = ["needs CLS"] if row["needs_cls"] else []
        lines = (
            [row["name"]],
            [row["sites"], row["schedule"]],
            [*filter(None, [parameters]), *cls, f"positions {methods[row['name']].numbering()}"],
            [row["reference"], row["exactness"]],
        )
        cells.append(["\n".join(each) for each in lines])
    columns = [
        Column(title="method", most=11),
        Column(title="cut at, tokens left", most=26),
        Column(title="parameters", most=26, drop=1),
        Column(title="what is exact", most=26, drop=2),
    ]
    return table(columns, cells, gaps=True)


def _text(value: Any) -> str:
    """Return a value as ``--set`` takes it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
