"""LLaVA's 'anyres' pictures: an overview and a fixed grid of tiles through one tower, packed with newline tokens.

The checkpoints list grids and take for each picture the one that fits it best. An exported graph has one shape, so a
configuration is fixed to one grid, and there is a vision graph for each that was asked for. A picture goes into a grid
as transformers' image processor does when that one is the only one listed: scaled to fit inside, padded with black.

[our reading] transformers then cuts away the patches that are all padding, which makes the number of tokens depend on
the picture. Here they stay, as for a picture of the grid's own shape; a pruning method scores them like any other.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lmmprune.errors import ModelError
from lmmprune.models.families import llava
from lmmprune.models.family import VisionSpec
from lmmprune.models.tiles import Tiling, nearest_grid

_DEFAULT = (2, 2)

ONE_PICTURE = "--tiles fixes how each is cut, and prompts of several pictures cut them otherwise"
"""Why a prompt has one picture."""
LIMITS = (
    "one picture per question, cut into one of the grids that --tiles chooses at export (2x2 where it is listed)",
    "a picture of another shape is padded, and the patches of the padding stay as candidates: transformers drops them",
    "newline tokens are no candidates: they always stay, and count as visual tokens",
    "no method that works inside the encoder (ficoco-v, ficoco-vl, tome): it sees the tiles one by one",
)


def arrange(config: Any, tiles: tuple[int, int] | None) -> tuple[Any, tuple[int, int]]:
    """Fix the rows and columns of tiles: the only grid that the configuration lists from now on.

    Raises:
        ModelError: The checkpoint doesn't list that grid.
    """
    listed = grids_of(config)
    chosen = tiles or (_DEFAULT if _DEFAULT in listed else listed[0])
    if chosen not in listed:
        known = ", ".join(f"{rows}x{columns}" for rows, columns in listed)
        rows, columns = nearest_grid(chosen, listed)
        raise ModelError(
            f"--tiles {chosen[0]}x{chosen[1]}: the model was trained on {known}; the nearest is {rows}x{columns}"
        )
    side = llava.vision_spec(config).image_size[0]
    config.image_grid_pinpoints = [[chosen[0] * side, chosen[1] * side]]
    return config, chosen


def grids_of(config: Any) -> tuple[tuple[int, int], ...]:
    """Return the rows and columns of all grids that a configuration lists, in its order."""
    side = llava.vision_spec(config).image_size[0]
    return tuple((height // side, width // side) for height, width in config.image_grid_pinpoints)


def tiling_of(config: Any) -> Tiling:
    """Return the grid that ``arrange`` has fixed."""
    tile = llava.vision_spec(config)
    ((height, width),) = config.image_grid_pinpoints
    return Tiling(rows=height // tile.image_size[0], columns=width // tile.image_size[1], grid=tile.grid)


def vision_spec(config: Any) -> VisionSpec:
    """Read the tower's numbers and those of the fixed grid."""
    tile, tiling = llava.vision_spec(config), tiling_of(config)
    return dataclasses.replace(
        tile, tokens=len(tiling.lines()), tiles=tiling.tiles, separators=tiling.newlines, tiling=tiling
    )


def features(model: Any, pixel_values: Any, next_layer: bool) -> Any:
    """Return the packed features ``[B,N,C]`` of pictures whose tiles are ``[B*tiles,3,H,W]``."""
    tiling = tiling_of(model.config)
    patches, states = llava.patches_of(model, pixel_values)
    projected = model.model.multi_modal_projector(tiling.pack(patches))
    separated = tiling.insert_separators(projected, model.model.image_newline)
    return (separated, llava.behind(model, states)) if next_layer else separated
