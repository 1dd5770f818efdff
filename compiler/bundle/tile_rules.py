"""What must be true of a bundle's grids of tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmmprune.compiler.bundle.tile_grids import images_of
from lmmprune.limits import bounded, shortened

if TYPE_CHECKING:
    from lmmprune.compiler.bundle.interface import Interface

MOST_TILES = 64
"""Images of a picture, the overview among them."""
_TEXT = 2**10


def check_tiles(interface: Interface) -> None:
    """Hold the grids and their texts against the rest of what is said.

    Raises:
        ValueError: They don't fit; one line that names the field.
    """
    tiles = interface.tile_grids
    if tiles is None:
        return
    if interface.joint or interface.tiles or interface.buckets or interface.decoder_sites:
        raise ValueError("tile_grids are there beside joint, tiles, buckets or cuts in the decoder: expected none")
    if not tiles.grids or len(set(tiles.grids)) != len(tiles.grids):
        raise ValueError(f"tile_grids.grids is {shortened(list(tiles.grids))}: expected grids, none of them twice")
    for grid in tiles.grids:
        for number in grid:
            bounded(number, "tile_grids.grids", 1, MOST_TILES)
        bounded(images_of(grid), "the images of one of tile_grids.grids", 1, MOST_TILES)
    once = {"picture": 1, "tile": 1, "overview": 1, "before": 0, "row_end": 0, "after": 0}
    for field, count in once.items():
        text = getattr(tiles, field)
        bounded(len(text), f"the length of tile_grids.{field}", count, _TEXT)
        if text.count(interface.prompt.image_token) != count or "{prompt}" in text:
            times = f"{interface.prompt.image_token!r} in it once" if count else "no picture in it"
            raise ValueError(f"tile_grids.{field} is {shortened(text)}: expected {times}, and no '{{prompt}}'")
    for field in ("template", "unit", "inline"):
        text = getattr(interface.prompt, field)
        if (text or field == "template") and tiles.picture not in text:
            raise ValueError(f"prompt.{field} is {shortened(text)}: expected tile_grids.picture in it")
