"""A smaller picture: the grid of tokens pooled to K windows of nearly the same area."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from lmmprune.compiler.verify.reference.chooser import round_half_up
from lmmprune.compiler.verify.reference.cut import CutRefused
from lmmprune.compiler.verify.reference.encoded import Encoded

Window = tuple[Fraction, Fraction]


def windows(rows: int, columns: int, keep: int) -> list[tuple[Window, Window]]:
    """Return from where to where each of ``keep`` windows reaches, in rows and in columns of the grid."""
    lines = min(max(round_half_up(math.sqrt(keep * rows / columns)), math.ceil(keep / columns)), rows, keep)
    result = []
    for i in range(lines):
        count = (i + 1) * keep // lines - i * keep // lines
        high = Fraction(i * rows, lines), Fraction((i + 1) * rows, lines)
        wide = [(Fraction(j * columns, count), Fraction((j + 1) * columns, count)) for j in range(count)]
        result += [(high, one) for one in wide]
    return result


def overlap(window: Window, cell: int) -> Fraction:
    """Return the length of what a window and the cell [cell, cell + 1) share."""
    return max(Fraction(0), min(window[1], Fraction(cell + 1)) - max(window[0], Fraction(cell)))


def pool(x: np.ndarray, columns: int, keep: int) -> tuple[np.ndarray, list[int]]:
    """Pool a raster x [n,C] to ``keep`` tokens; return them and the places of the windows' middles."""
    rows = len(x) // columns
    tokens, places = [], []
    for high, wide in windows(rows, columns, keep):
        area = (high[1] - high[0]) * (wide[1] - wide[0])
        token = np.zeros(x.shape[1])
        for row in range(math.floor(high[0]), math.ceil(high[1])):
            for column in range(math.floor(wide[0]), math.ceil(wide[1])):
                share = overlap(high, row) * overlap(wide, column) / area
                token += float(share) * x[row * columns + column]
        tokens.append(token)
        places.append(math.floor((high[0] + high[1]) / 2) * columns + math.floor((wide[0] + wide[1]) / 2))
    return np.stack(tokens).astype(x.dtype), places


def downsample(e: Encoded, keep: int) -> tuple[np.ndarray, list[int]]:
    """Pool each tile by itself; return the features [K,C] and their places in the whole picture, ascending.

    Raises:
        CutRefused: There is less than a token for each tile.
    """
    count = len(e.tiles)
    if keep < count:
        raise CutRefused(f"downsample keeps at least a token of each of {count} tiles, not {keep} in all")
    found: list[tuple[int, np.ndarray]] = []
    for tile in range(count):
        # The tokens of the tile in raster order, and where in the whole picture each is.
        mine = sorted((square[0][1], j) for j, square in enumerate(e.squares) if square[0][0] == tile)
        places = [j for _, j in mine]
        tokens, middles = pool(e.x[places], e.columns, (tile + 1) * keep // count - tile * keep // count)
        found += [(places[middle], token) for middle, token in zip(middles, tokens, strict=True)]
    found.sort(key=lambda pair: pair[0])
    return np.stack([token for _, token in found]), [place for place, _ in found]
