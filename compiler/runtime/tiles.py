"""Cut a picture into tiles, bit for bit as transformers' 'anyres' image processors do, and find its tokens again."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def letterbox(picture: Image.Image, height: int, width: int, resample: Image.Resampling) -> Image.Image:
    """Scale an RGB picture to fit into so many pixels, and pad it with black on both sides."""
    across, down = width / picture.width, height / picture.height
    if across < down:
        size = (width, min(math.ceil(picture.height * across), height))
    else:
        size = (min(math.ceil(picture.width * down), width), height)
    canvas = Image.new("RGB", (width, height))
    # The odd pixel of padding stays behind.
    canvas.paste(picture.resize(size, resample=resample), ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


def cut(picture: Image.Image, rows: int, columns: int) -> list[Image.Image]:
    """Cut a picture whose sides they divide into equal tiles, row by row."""
    height, width = picture.height // rows, picture.width // columns
    return [
        picture.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))
        for row in range(rows)
        for column in range(columns)
    ]


def on_raster(places: NDArray[np.int64], grid: tuple[int, int], tiles: tuple[int, int] | None) -> NDArray[np.int64]:
    """Return which patch of the picture's raster each visual token shows.

    Args:
        places: ``[K]``, tokens of the unpruned picture; -1: none.
        grid: Patches of one image, rows and columns.
        tiles: Rows and columns of tiles; None: the picture is one image, and its tokens are the raster.

    Returns:
        ``[K]`` places in the raster of all tiles together; -1 for what isn't in it, the overview and newlines too.
    """
    if tiles is None:
        return places
    columns = tiles[1] * grid[1]
    # The overview's patches come first, then every row with a newline behind it.
    line, column = np.divmod(places - grid[0] * grid[1], columns + 1)
    return np.where((line >= 0) & (column < columns), line * columns + column, -1)


def on_tiles(places: NDArray[np.int64], patches: tuple[int, int], grid: tuple[int, int]) -> NDArray[np.int64]:
    """Return which patch of the picture's raster each visual token shows, where tiles come one by one.

    Args:
        places: ``[K]``, tokens of the unpruned picture: those of tile i from i * N on, the overview's last; -1: none.
        patches: Visual tokens of one tile, rows and columns.
        grid: Rows and columns of tiles.

    Returns:
        ``[K]`` places in the raster of all tiles together; -1 for what isn't in it, the overview too.
    """
    rows, columns = patches
    tile, patch = np.divmod(places, rows * columns)
    line, column = tile // grid[1] * rows + patch // columns, tile % grid[1] * columns + patch % columns
    return np.where((places >= 0) & (tile < grid[0] * grid[1]), line * grid[1] * columns + column, -1)
