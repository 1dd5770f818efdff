"""Down-sampling: the grid of patches averaged to K tokens, the baseline of a smaller picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.methods.method import Method
from lmmprune.passes.reduce.rules import Outcome, ReductionRule
from lmmprune.passes.reduce.schedule import Counts, round_half_up
from lmmprune.passes.reduce.site_context import FLOAT, SiteContext


@dataclass(frozen=True, kw_only=True)
class Downsample(Method):
    """Average the grid of patches to K tokens, means over rectangles in which patches count by area.

    For any K: bands of rectangles as near to square as whole numbers allow, K spread evenly over them. Each token has
    the place of the patch in its middle. It looks at nothing.

    Reference: the baseline of VTC-Bench, 2025, arXiv 2510.07143, there a smaller picture; pooling is ours.
    """

    name = "downsample"
    reference = "baseline"
    exactness = "averages of the encoder's output in place of the paper's smaller picture [ours]"

    def counts(self, model: Facts, target: int) -> Counts:
        """K, at least one of each tile."""
        least = model.separators + model.tiles
        if target < least:
            raise InputError(f"method '{self.name}' leaves a token of each tile: keep {least} or more")
        return super().counts(model, target)

    def rule(self) -> ReductionRule:
        """Pool."""
        return _pool


def _pool(at: SiteContext, keep: int) -> Outcome:
    b = at.b
    weights = np.zeros((keep, at.tokens), np.float32)
    places, done = np.empty(keep, np.int64), 0
    for tile, members in enumerate(_tile_by_tile(at)):
        count = (tile + 1) * keep // at.tiles - tile * keep // at.tiles
        shares, middles = pooling(at.grid, count)
        weights[done : done + count, members] = shares
        places[done : done + count] = members[middles]
        done += count
    order = np.argsort(places)
    pooled = b.op("MatMul", b.constant(weights[order][None]), b.op("Cast", at.visual, to=FLOAT))
    return Outcome(
        kept=b.constant(np.tile(places[order], (at.batch, 1))),
        tokens=pooled,
        received=b.constant(np.ones((at.batch, keep), np.float32)),
        ordered=True,
    )


def _tile_by_tile(at: SiteContext) -> list[np.ndarray]:
    """Return the tokens of each tile, ``[R*C]``, in the raster of its grid: so they stand in the whole picture, too."""
    if at.members is None or at.tiles == 1:
        return [np.arange(at.tokens)]
    tile = at.members[:, 0] // at.per_image
    return [np.flatnonzero(tile == index) for index in range(at.tiles)]


def pooling(grid: tuple[int, int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights ``[K,N]`` that pool a grid to K tokens, and the patch in each one's middle, ``[K]``.

    Args:
        grid: R rows and C columns, N = R C.
        count: 1 <= K <= N.
    """
    rows, columns = grid
    least, most = math.ceil(count / columns), min(rows, count)
    bands = min(max(round_half_up(math.sqrt(count * rows / columns)), least), most)
    down = _overlaps(rows, bands)
    weights, middles = [], []
    for band in range(bands):
        across = (band + 1) * count // bands - band * count // bands
        shares = down[band][None, :, None] * _overlaps(columns, across)[:, None, :]
        weights.append(shares.reshape(across, -1))
        middles.append((2 * band + 1) * rows // (2 * bands) * columns + _middles(columns, across))
    return np.concatenate(weights), np.concatenate(middles)


def _overlaps(length: int, parts: int) -> np.ndarray:
    """Return the share of each unit of a line in each of its equal parts, ``[parts,length]``; rows sum to one."""
    ends = np.arange(parts + 1)[:, None] * (length / parts)
    units = np.arange(length)[None]
    shares: np.ndarray = np.maximum(np.minimum(ends[1:], units + 1) - np.maximum(ends[:-1], units), 0)
    return shares * (parts / length)


def _middles(length: int, parts: int) -> np.ndarray:
    return (2 * np.arange(parts) + 1) * length // (2 * parts)
