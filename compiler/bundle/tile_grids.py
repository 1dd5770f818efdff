"""The grids of tiles that the pictures of a bundle may be cut into, and how a prompt writes such a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Grid = tuple[int, int]
"""Rows and columns of tiles."""

WHOLE: Grid = (1, 1)
"""A picture that goes in as one image, without an overview."""
ROW, COLUMN = "{row}", "{column}"
"""Where the text of a tile has its numbers, from 1 on."""


@dataclass(frozen=True, kw_only=True)
class TileGrids:
    """What the vision graph, which sees one tile, and the prompt need to know of pictures of several.

    Every grid but 1x1 has an overview of the whole picture behind its tiles.

    Attributes:
        grids: Those that the run-time chooses from for each picture, fewest tiles first.
        picture: What the prompt template, and a picture inside a question, have for a picture of one image.
        before: What stands before the tiles.
        tile: For each tile, with the placeholder once; ``{row}`` and ``{column}`` are its numbers.
        row_end: Behind each row.
        overview: For the overview, with the placeholder once.
        after: Behind everything.
    """

    grids: tuple[Grid, ...]
    picture: str
    tile: str
    overview: str
    before: str = ""
    row_end: str = ""
    after: str = ""

    @property
    def most(self) -> int:
        """Images of the largest grid."""
        return most_images(self.grids)

    @property
    def largest(self) -> Grid:
        """A grid with the most images."""
        return max(self.grids, key=images_of)

    def text(self, grid: Grid) -> str:
        """Return what a prompt writes for a picture, with the placeholder once for each of its images."""
        if grid == WHOLE:
            return self.picture
        lines = (
            "".join(self.tile.replace(ROW, str(row + 1)).replace(COLUMN, str(column + 1)) for column in range(grid[1]))
            for row in range(grid[0])
        )
        return f"{self.before}{''.join(line + self.row_end for line in lines)}{self.overview}{self.after}"


def images_of(grid: Grid) -> int:
    """Return how many images the vision graph sees of a picture."""
    return 1 if grid == WHOLE else grid[0] * grid[1] + 1


def most_images(grids: Sequence[Grid]) -> int:
    """Return the images of the largest grid; 1 without any."""
    return max(map(images_of, grids), default=1)


def named(grid: Grid) -> str:
    """Return a grid as options have it: rows x columns."""
    return f"{grid[0]}x{grid[1]}"
