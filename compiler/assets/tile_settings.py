"""What a bundle says of pictures cut into tiles: the processor's rule for grids, and its text around the tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmmprune.compiler.bundle.tile_grids import Grid, TileGrids, named
from lmmprune.compiler.bundle.tile_rules import MOST_TILES
from lmmprune.compiler.runtime.tile_rule import COVER, own_grids
from lmmprune.errors import ModelError
from lmmprune.models.family import Family
from lmmprune.models.source import Source

_EDGES = 4
"""Tiles of the longest edge, of an architecture without a checkpoint: as SmolVLM's processor has it."""
_PATCHES = (1, 12)
"""Tiles at least and at most, where nothing is stated: InternVL's."""
_NAMED = 6


def whole_tiles(source: Source) -> dict[str, Any]:
    """Return the settings of an image processor for an architecture without a checkpoint that has a ``split``."""
    height, width = source.vision.image_size
    sizes: dict[str, Any] = {"size": {"height": height, "width": width}}
    if source.family.split is not None and source.family.split.rule == COVER:
        sizes = {"size": {"longest_edge": _EDGES * height}, "max_image_size": {"longest_edge": height}}
    return {"do_center_crop": False, **sizes}


def grids_step(source: Source, raw: dict[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
    """Return the step ``grids`` of ``preprocessor.json``.

    Args:
        source: The model; its family has a ``split``.
        raw: Settings of its image processor.
        grids: Those that the bundle has.

    Raises:
        ModelError: It cuts into more tiles than can be served.
    """
    assert source.family.split is not None, "as is checked before"
    least, most = (raw.get(name) or usual for name, usual in zip(("min_patches", "max_patches"), _PATCHES, strict=True))
    if not 1 <= least <= most <= MOST_TILES:
        raise ModelError(
            f"the image processor cuts pictures into {least} to {most} tiles: expected 1 to {MOST_TILES} at most"
        )
    return {
        "rule": source.family.split.rule,
        "grids": [list(grid) for grid in grids],
        "side": list(source.vision.image_size),
        "least": least,
        "most": most,
    }


def processor_grids(source: Source, raw: dict[str, Any]) -> list[Grid]:
    """Return all grids that the checkpoint's own processor cuts pictures into; none if any size may come."""
    step, size = grids_step(source, raw, ()), raw.get("size")
    longest = size.get("longest_edge") if isinstance(size, dict) and raw.get("do_resize", True) else None
    return own_grids(step["rule"], longest_edge=longest, side=step["side"][0], least=step["least"], most=step["most"])


def not_exported(own: Sequence[Grid], grids: Sequence[Grid]) -> tuple[str, ...]:
    """Say which of the processor's own grids a bundle lacks: pictures of these go into others."""
    missing = [named(grid) for grid in own if grid not in grids]
    if not missing:
        return ()
    some = ", ".join(missing[:_NAMED]) + (f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else "")
    return (
        f"the checkpoint's own processor also cuts pictures into {some}, which --tiles leaves out: such a picture goes"
        " into the nearest grid that is there (--tiles all has every one)",
    )


def tile_texts(family: Family, token: str, grids: Sequence[Grid]) -> TileGrids | None:
    """Return the grids with what a prompt writes for them; None without any.

    Args:
        family: The model's.
        token: Text of the placeholder.
        grids: Rows x columns.
    """
    split = family.split
    if split is None or not grids:
        return None
    parts = {
        name: getattr(split, name).replace(family.image_token, token)
        for name in ("before", "tile", "row_end", "overview", "after")
    }
    return TileGrids(grids=tuple(grids), picture=family.picture.replace(family.image_token, token), **parts)
