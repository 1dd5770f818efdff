"""Pictures cut into tiles: how the patches of several tower images become one sequence of visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """An overview of the whole picture, then ``rows x columns`` tiles of it, each ``grid`` patches.

    The tower sees the overview first, then the tiles row by row. The decoder sees the patches of the overview, then
    those of all tiles together as one raster, with a newline token behind each of its rows.
    """

    rows: int
    columns: int
    grid: tuple[int, int]

    @property
    def tiles(self) -> int:
        """Tower images of a picture."""
        return self.rows * self.columns + 1

    @property
    def newlines(self) -> int:
        """Newline tokens: one behind each row of patches of the tiles together."""
        return self.rows * self.grid[0]

    def order(self) -> NDArray[np.int64]:
        """Return, for each patch as the decoder meets it, its place among the patches as the tower sees them."""
        height, width = self.grid
        patches = np.arange(self.tiles * height * width, dtype=np.int64)
        overview, tiles = np.split(patches, [height * width])
        raster = tiles.reshape(self.rows, self.columns, height, width).transpose(0, 2, 1, 3)
        return np.concatenate([overview, raster.reshape(-1)])

    def lines(self) -> NDArray[np.int64]:
        """Return the sequence with its newlines: places in ``order``, and one past its end for a newline."""
        count = self.tiles * self.grid[0] * self.grid[1]
        overview, tiles = np.split(np.arange(count, dtype=np.int64), [self.grid[0] * self.grid[1]])
        raster = tiles.reshape(self.newlines, self.columns * self.grid[1])
        ends = np.full((self.newlines, 1), count, np.int64)
        return np.concatenate([overview, np.concatenate([raster, ends], axis=1).reshape(-1)])

    def pack(self, patches: Any) -> Any:
        """Put patches ``[B*tiles,n,C]`` of all tiles in the decoder's order, ``[B,tiles*n,C]``."""
        import torch

        together = patches.reshape(-1, self.tiles * patches.shape[1], patches.shape[2])
        return together.index_select(1, torch.from_numpy(self.order()))

    def insert_separators(self, features: Any, newline: Any) -> Any:
        """Set the newline ``[C]`` behind each row of the projected patches ``[B,N,C]``."""
        import torch

        table = torch.cat([features, newline.expand(features.shape[0], 1, -1)], dim=1)
        return table.index_select(1, torch.from_numpy(self.lines()))


def nearest_grid(grid: tuple[int, int], grids: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the grid whose rows and columns differ least."""
    return min(grids, key=lambda other: ((other[0] - grid[0]) ** 2 + (other[1] - grid[1]) ** 2, other))
