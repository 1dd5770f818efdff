"""Choose the grid of tiles for a picture and cut it, bit for bit as transformers' PIL image processors do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from lmmprune.compiler.bundle.tile_grids import WHOLE, Grid
from lmmprune.compiler.runtime.tiles import cut

COVER, SHAPE = "cover", "shape"
RULES = (COVER, SHAPE)


@dataclass(frozen=True, kw_only=True)
class Picked:
    """The grid that a picture gets, and the one that the checkpoint's own processor cuts it into."""

    grid: Grid
    own: Grid


@dataclass(frozen=True, kw_only=True)
class TileRule:
    """How a picture's grid follows from its size.

    ``cover`` (Idefics3, SmolVLM) takes as many tiles as cover the picture, once its longest edge has the size that the
    processor gives it. ``shape`` (InternVL) takes the grid whose shape is nearest, columns / rows to width / height.

    Attributes:
        rule: ``cover`` or ``shape``.
        grids: Those that there are, in any order.
        side: Height and width of a tile in pixels.
        least: Of ``shape``: tiles that the processor cuts into at least.
        most: Of ``shape``: at most.
    """

    rule: str
    grids: tuple[Grid, ...]
    side: tuple[int, int]
    least: int = 1
    most: int = 1

    def pick(self, width: int, height: int) -> Picked:
        """Return the grid of a picture.

        The processor's own where it is there. Else ``shape`` chooses among those that are there, by the same rule;
        ``cover`` takes the nearest shape, of these the nearest number of tiles [ours].

        Args:
            width: In pixels; for ``cover`` after its longest edge was set.
            height: Likewise.
        """
        if self.rule == SHAPE:
            own = nearest_shape(width, height, self.side, listed(self.least, self.most))
            return Picked(grid=nearest_shape(width, height, self.side, in_order(self.grids)), own=own)
        own = covering(width, height, self.side[0])
        if own in self.grids:
            return Picked(grid=own, own=own)
        tiles = own[0] * own[1]

        def distance(grid: Grid) -> tuple[float, int, Grid]:
            apart = abs(math.log(grid[1] * height / (grid[0] * width)))
            return round(apart, 9), abs(grid[0] * grid[1] - tiles), grid

        return Picked(grid=min(self.grids, key=distance), own=own)

    def fill(self, picture: Image.Image, grid: Grid, resample: Image.Resampling) -> Image.Image:
        """Return a picture that fills all tiles of a grid."""
        return picture.resize((grid[1] * self.side[1], grid[0] * self.side[0]), resample=resample)

    def tiles(self, picture: Image.Image, grid: Grid, resample: Image.Resampling) -> list[Image.Image]:
        """Return the tiles of a picture row by row, and behind them its overview; of 1x1 the one image.

        Args:
            picture: In RGB; for ``cover`` after its longest edge was set.
            grid: Rows and columns.
            resample: The interpolation.
        """
        filled = self.fill(picture, grid, resample)
        if grid == WHOLE:
            return [filled]
        # Idefics3 shrinks what it has cut, InternVL the picture itself.
        return [*cut(filled, *grid), self.fill(filled if self.rule == COVER else picture, WHOLE, resample)]


def covering(width: int, height: int, side: int) -> Grid:
    """Return the fewest square tiles that cover a picture, once its longer edge is a multiple of theirs."""
    shape = width / height
    if width >= height:
        columns = math.ceil(width / side)
        return max(math.ceil(int(columns * side / shape) / side), 1), columns
    rows = math.ceil(height / side)
    return rows, max(math.ceil(int(rows * side * shape) / side), 1)


def listed(least: int, most: int) -> list[Grid]:
    """Return all grids of so many tiles, in the order in which the processor goes through them."""
    every = [
        (rows, columns)
        for columns in range(1, most + 1)
        for rows in range(1, most + 1)
        if least <= rows * columns <= most
    ]
    return in_order(every)


def in_order(grids: Sequence[Grid]) -> list[Grid]:
    """Return grids by their number of tiles, of equal ones the narrower first."""
    return sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[1]))


def nearest_shape(width: int, height: int, side: tuple[int, int], grids: Sequence[Grid]) -> Grid:
    """Return the grid whose columns / rows differ least from width / height.

    Of equally near ones a larger one is taken if the picture has more than half of its pixels.

    Args:
        width: Of the picture in pixels.
        height: Likewise.
        side: Height and width of a tile.
        grids: In the order of ``in_order``.
    """
    wanted, least, best = width / height, math.inf, WHOLE
    for rows, columns in grids:
        apart = abs(wanted - columns / rows)
        # In this order of operations, as halves of odd numbers of pixels are compared.
        large_enough = width * height > 0.5 * side[0] * side[1] * columns * rows
        if apart < least or (apart == least and large_enough):
            least, best = apart, (rows, columns)
    return best


def own_grids(rule: str, *, longest_edge: int | None, side: int, least: int, most: int) -> list[Grid]:
    """Return all grids that the processor cuts pictures into, whatever their shape; fewest tiles first.

    Args:
        rule: See ``TileRule``.
        longest_edge: Of ``cover``: what the longest edge becomes; None: pictures keep their size, any grid may come.
        side: Of a tile, in pixels.
        least: As in ``TileRule``.
        most: Likewise.
    """
    if rule == SHAPE:
        return listed(least, most)
    if longest_edge is None:
        return []
    long = math.ceil(longest_edge / side)
    return in_order([*((short, long) for short in range(1, long + 1)), *((long, short) for short in range(1, long))])
