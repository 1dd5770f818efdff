"""How much a distribution loses when a window of its bins is quantized to a few levels."""

from __future__ import annotations

import numpy as np

from lmmprune.stored import Array


def divergences(counts: Array, starts: Array, stops: Array, levels: int) -> Array:
    """Return KL(P || Q) in nats for each of G windows.

    P is the window with all counts outside of it added to its outermost bins. Q is the window without them: bin j of w
    belongs to level ``floor(j levels / w)``, and each level's counts are spread evenly over those of its bins that
    aren't empty. Both are normalized. Where P has counts and Q none, the divergence is infinite.

    Args:
        counts: int64 ``[n]``.
        starts: int64 ``[G]``, first bin of each window.
        stops: int64 ``[G]``, bin after the last one; windows have at least ``levels`` bins.
        levels: Levels of Q.

    Returns:
        float64 ``[G]``.

    Reference: Migacz 2017, 8-bit Inference with TensorRT, GTC 2017, the pseudo-code on calibration.
    """
    sizes = (stops - starts)[:, None]
    bounds = starts[:, None] + -(-np.arange(levels + 1) * sizes // levels)
    before = np.concatenate(([0], np.cumsum(counts)))
    occupied = np.concatenate(([0], np.cumsum(counts > 0)))
    inside = np.diff(before[bounds], axis=1)
    spread = np.diff(occupied[bounds], axis=1)
    outside = before[starts], before[-1] - before[stops]
    reference = inside.copy()
    reference[:, 0] += outside[0]
    reference[:, -1] += outside[1]
    # Sum of p log q: all bins of a level that count in P have the same q, inside / spread.
    mean = np.divide(inside, spread, out=np.ones(inside.shape), where=spread > 0)
    cross = (reference * np.log(mean)).sum(1)
    # Sum of p log p: as within the window, but for its two outermost bins.
    own = np.concatenate(([0.0], np.cumsum(_x_log_x(counts))))
    first, last = counts[starts], counts[stops - 1]
    entropy = own[stops] - own[starts] - _x_log_x(first) - _x_log_x(last)
    entropy += _x_log_x(first + outside[0]) + _x_log_x(last + outside[1])
    total, kept = before[-1], before[stops] - before[starts]
    lost = ((outside[0] > 0) & (first == 0)) | ((outside[1] > 0) & (last == 0)) | (kept == 0)
    result: Array = (entropy - cross) / total - np.log(total) + np.log(np.maximum(kept, 1))
    return np.where(lost, np.inf, result)


def _x_log_x(counts: Array) -> Array:
    result: Array = counts * np.log(np.maximum(counts, 1))
    return result
