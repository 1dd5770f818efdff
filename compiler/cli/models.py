"""``lmmprune models``: what ``--model`` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lmmprune.compiler.cli.output import json_option, print_json, show, table

if TYPE_CHECKING:
    from rich.table import Table


@click.command()
@json_option
def command(as_json: bool) -> None:
    """List the aliases, and the families with what they support, what they don't, and why."""
    from lmmprune.models.aliases import ALIASES
    from lmmprune.models.registry import FAMILIES

    aliases = [
        {
            "name": name,
            "family": alias.family,
            "checkpoint": alias.hub_id or "ships with lmmprune",
            "dummy_without_checkpoint": alias.config is not None,
            "note": alias.note,
        }
        for name, alias in ALIASES.items()
    ]
    families = [
        {
            "name": family.name,
            "title": family.title,
            "reference": family.reference,
            "template": family.template,
            "sites": family.sites,
            "tiles": family.arrange is not None,
            "tried": family.tried,
            "limits": family.limits,
        }
        for family in FAMILIES.values()
    ]
    if as_json:
        print_json({"aliases": aliases, "families": families})
        return
    columns = ["name", "family", "checkpoint", "note"]
    show(
        table(columns, [[str(row[key]) for key in columns] for row in aliases], title="aliases"),
        _families(families),
        "--model also takes a hub id or a local directory of one of these families; 'tried' are those whose files, made"
        " small, were exported and answered as transformers does.",
    )


def _families(rows: list[dict[str, Any]]) -> Table:
    """Return a table with what a family can be cut at, what it can't do, and whose layout was tried."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    result = Table(title="families", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for title, width in (("family", 16), ("cut at", 18), ("limits", 60)):
        result.add_column(title, max_width=width, overflow="fold")
    for row in rows:
        limits = "\n".join([*(f"- {limit}" for limit in row["limits"]), *(f"tried: {name}" for name in row["tried"])])
        names = "\n".join([row["name"], row["title"]])
        result.add_row(*(Text(cell) for cell in (names, "\n".join(row["sites"]), limits)))
        result.add_section()
    return result
