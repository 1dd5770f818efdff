"""``lmmprune models``: what ``--model`` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lmmprune.compiler.cli import completion
from lmmprune.compiler.cli.command import Command, argument
from lmmprune.compiler.cli.output import json_option, print_json, show
from lmmprune.compiler.cli.table import Column, Table, details, table
from lmmprune.units import human_bytes

if TYPE_CHECKING:
    from lmmprune.models.family import Family


@click.command("models", cls=Command, example="lmmprune models llava-1.5-7b")
@argument("name", required=False, type=completion.MODEL_OR_FAMILY)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the aliases, and the families with what they support, what they don't, and why.

    With NAME, an alias or a family, say more of it.
    """
    from lmmprune.errors import InputError, suggestion
    from lmmprune.models.aliases import ALIASES
    from lmmprune.models.registry import FAMILIES

    if name is not None:
        if name not in ALIASES and name not in FAMILIES:
            raise InputError(f"no alias or family '{name}'{suggestion(name, [*ALIASES, *FAMILIES])}")
        _show_one(name, as_json)
        return
    aliases = [_alias(each) for each in ALIASES]
    families = [_family(each) for each in FAMILIES]
    if as_json:
        print_json({"aliases": aliases, "families": families})
        return
    columns: list[str | Column] = [
        "name",
        Column(title="family", drop=2),
        Column(title="checkpoint", path=True),
        Column(title="note", drop=1),
    ]
    show(
        table(
            columns, [[row["name"], row["family"], row["checkpoint"], row["note"]] for row in aliases], title="aliases"
        ),
        _families(families),
        "--model also takes a hub id or a local directory of one of these families; 'tried' are those whose files, made"
        " small, were exported and answered as transformers does.",
    )


def _alias(name: str) -> dict[str, Any]:
    from lmmprune.models.aliases import ALIASES

    alias = ALIASES[name]
    return {
        "name": name,
        "family": alias.family,
        "checkpoint": alias.hub_id or "ships with lmmprune",
        "dummy_without_checkpoint": alias.config is not None,
        "note": alias.note,
    }


def _family(name: str) -> dict[str, Any]:
    from lmmprune.models.registry import FAMILIES

    family = FAMILIES[name]
    return {
        "name": family.name,
        "title": family.title,
        "reference": family.reference,
        "template": family.template,
        "sites": family.sites,
        "tiles": family.arrange is not None or family.split is not None,
        "tile_grids": family.split is not None or family.grids is not None,
        "as_a_whole": family.grids is None,
        "sizes": family.sizes,
        "several_images": family.several,
        "joint_choice": family.joint,
        "videos": family.video is not None,
        "batch": family.arrange is None,
        "tried": family.tried,
        "limits": family.limits,
    }


def _show_one(name: str, as_json: bool) -> None:
    """Show an alias with its family, or a family with its aliases."""
    from lmmprune.models.aliases import ALIASES
    from lmmprune.models.registry import FAMILIES

    data: dict[str, Any] = {}
    shown: dict[str, str] = {}
    if name in ALIASES:
        alias = ALIASES[name]
        data |= {"alias": _alias(name) | {"bytes": alias.size, "licence": alias.licence}}
        shown |= {
            "alias": name,
            "checkpoint": data["alias"]["checkpoint"],
            "size": "unknown" if alias.size is None else human_bytes(alias.size),
            "licence": alias.licence or "unknown",
            "note": alias.note,
            "--weights dummy": "yes" if alias.config is not None else "no, its configuration isn't known here",
        }
    family = FAMILIES[ALIASES[name].family if name in ALIASES else name]
    data["family"] = _family(family.name)
    shown |= {
        "family": f"{family.name}, {family.title}",
        "reference": family.reference or "none",
        "cut at": ", ".join(family.sites),
        "pictures": _pictures(family),
        **({"beside": _SIZES} if family.sizes else {}),
        "--images": _images(family.several, family.joint) or f"one per prompt: {family.one_picture}",
        "--frames": "videos, as frames" if family.video else "no videos",
        "chat": _talks(family.several),
        "--batch": "several questions at once" if family.arrange is None else "one at a time: pictures are tiles",
        "template": family.template.replace("\n", "\\n"),
        "limits": "\n".join(family.limits) or "none known",
        "tried": "\n".join(family.tried) or "none of the hub's",
    }
    if name not in ALIASES:
        data["aliases"] = [_alias(each) for each, alias in ALIASES.items() if alias.family == name]
        shown["aliases"] = ", ".join(row["name"] for row in data["aliases"]) or "none"
    if as_json:
        print_json(data)
    else:
        show(details(shown))


def _pictures(family: Family) -> str:
    """Say what a picture is to the tower."""
    if family.split is not None:
        return _GRIDS
    return _CUT if family.grids is not None else "as a whole"


_SIZES = "several sizes of pictures behind one decoder (--image-size, repeated)"
_CUT = "cut into one of several grids of tiles (--tiles)"
_GRIDS = "as a whole, or cut into one of several grids of tiles (--tiles)"


def _images(several: bool, joint: bool) -> str:
    """Say whether a prompt may have several pictures, and what there is for them; nothing if it may not."""
    return f"several pictures per prompt (--images{', --joint' * joint})" if several else ""


def _talks(several: bool) -> str:
    """Say what a conversation about this family's pictures may have."""
    more = "with further pictures in later questions" if several else "about one picture"
    return f"conversations (chat), {more}, where the checkpoint's chat template goes on"


def _families(rows: list[dict[str, Any]]) -> Table:
    """Return a table with what a family can be cut at, what it can't do, and whose layout was tried."""
    cells = []
    for row in rows:
        several = _images(row["several_images"], row["joint_choice"])
        limits = [
            *([f"+ {several}"] if several else []),
            f"+ {_talks(row['several_images'])}",
            *(["+ several questions at once (--batch)"] if row["batch"] else []),
            *(["+ videos, as frames (--frames)"] if row["videos"] else []),
            *([f"+ {_SIZES}"] if row["sizes"] else []),
            *([f"+ {_GRIDS if row['as_a_whole'] else _CUT}"] if row["tile_grids"] else []),
            *(f"- {limit}" for limit in row["limits"]),
            *(f"tried: {name}" for name in row["tried"]),
        ]
        cells.append([f"{row['name']}\n{row['title']}", "\n".join(row["sites"]), "\n".join(limits)])
    columns: list[str | Column] = [
        Column(title="family", most=16),
        Column(title="cut at", most=18, drop=1),
        Column(title="limits", most=60, path=True),
    ]
    return table(columns, cells, title="families", gaps=True)
