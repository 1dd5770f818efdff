"""Which grids of tiles an export gets, and what doesn't go together with tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmmprune.compiler.assets.image_processor import image_processor
from lmmprune.compiler.assets.tile_settings import processor_grids, whole_tiles
from lmmprune.compiler.bundle.tile_grids import Grid, images_of, most_images, named
from lmmprune.compiler.bundle.tile_rules import MOST_TILES
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.export.values import ALL_TILES, Buckets, Tiles
from lmmprune.compiler.runtime.tile_rule import in_order
from lmmprune.errors import InputError
from lmmprune.models.source import Source

if TYPE_CHECKING:
    from lmmprune.facts import Facts
    from lmmprune.passes.methods import Method
    from lmmprune.passes.reduce.stage import Stage


def listed_grids(tiles: Tiles | None) -> tuple[Grid, ...]:
    """Return the grids that were asked for by name: one, several, or none where nothing or all was asked for.

    Raises:
        InputError: They aren't pairs of whole numbers from 1 on.
    """
    if tiles is None or tiles == ALL_TILES:
        return ()
    given: Any = tiles
    grids = [given] if isinstance(given, tuple | list) and given and isinstance(given[0], int) else given
    try:
        pairs = tuple((rows, columns) for rows, columns in grids)
    except (TypeError, ValueError):
        pairs = ()
    if not pairs or not all(type(number) is int and number > 0 for pair in pairs for number in pair):
        raise InputError(f"tiles is {given!r}: expected rows and columns, such as (2, 2), several such pairs, or 'all'")
    return pairs


def choose_grids(tiles: Tiles | None, source: Source) -> tuple[Grid, ...]:
    """Return the grids of a model whose tower sees tiles one by one, fewest tiles first; none for others.

    Args:
        tiles: ``--tiles``.
        source: The model.

    Raises:
        InputError: The model takes one grid, or a grid has too many tiles.
        ModelError: There is no image processor that says which all are.
    """
    listed = listed_grids(tiles)
    if source.family.split is None:
        if tiles == ALL_TILES and source.family.arrange is None:
            raise InputError(f"--tiles: {source.family.title} takes a picture as a whole; leave it out")
        if len(listed) > 1 or tiles == ALL_TILES:
            raise InputError(f"--tiles: {source.family.title} takes one grid per export: give one, such as 2x2")
        return ()
    if tiles == ALL_TILES:
        raw = image_processor(source.directory) if source.directory else whole_tiles(source)
        listed = tuple(processor_grids(source, raw))
        if not listed:
            raise InputError(
                "--tiles all: the checkpoint's processor takes pictures in their own size, any grid may come: name some"
            )
    for grid in listed:
        if (images := images_of(grid)) > MOST_TILES:
            raise InputError(f"--tiles {named(grid)}: {images} images with the overview, expected {MOST_TILES} at most")
    return tuple(in_order([*dict.fromkeys(listed)]))


def check_tiles(
    request: Request,
    source: Source,
    method: Method,
    facts: Facts,
    stages: Sequence[Stage],
    grids: Sequence[Grid],
    *,
    entering: int,
    positions: str,
) -> None:
    """Refuse tiles where the method or another option takes pictures of one image.

    Args:
        request: What the user asked for.
        source: The model.
        method: The method.
        facts: The model's numbers, of a tile.
        stages: Where tokens are cut; none where pictures will decide.
        grids: Those that the export gets; none: nothing to refuse.
        entering: Visual tokens that enter the decoder at most.
        positions: How tokens are numbered that enter the decoder.
    """
    if not grids:
        return
    if isinstance(request.tokens, Buckets):
        raise InputError("--tiles and --buckets don't go together yet: leave one out")
    planned = stages or (() if request.tokens is None else method.stages_for(facts, facts.tokens))
    inside = next((s.site for s in planned if s.site.in_decoder and not s.site.before_layers), None)
    if inside is not None:
        raise InputError(
            f"--tiles: method '{method.name}' cuts at {inside}, where a tile's place in the prompt must be known at"
            " export: use one that cuts at vision_output, projector_output or llm_input_0"
        )
    runs = request.images * most_images(grids)
    numbered = runs * facts.tokens if positions == "original" else entering
    if numbered + 2 > source.decoder.max_positions:
        largest = named(max(grids, key=images_of))
        raise InputError(
            f"--tiles {largest}: {runs} images take {numbered} of the model's {source.decoder.max_positions} positions,"
            " and the question needs some: give smaller grids, or --positions contiguous with a larger --ratio"
        )
