"""``lmmprune models``: what ``--model`` takes."""

from __future__ import annotations

import click

from lmmprune.compiler.cli.output import json_option, print_json, show, table


@click.command()
@json_option
def command(as_json: bool) -> None:
    """List the aliases and the families that are supported."""
    from lmmprune.models.registry import ALIASES, FAMILIES

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
        {"name": family.name, "title": family.title, "template": family.template} for family in FAMILIES.values()
    ]
    if as_json:
        print_json({"aliases": aliases, "families": families})
        return
    columns = ["name", "family", "checkpoint", "note"]
    show(
        table(columns, [[str(row[key]) for key in columns] for row in aliases], title="aliases"),
        table(["family", "model"], [[row["name"], row["title"]] for row in families], title="families"),
        "--model also takes a hub id or a local directory of one of these families.",
    )
