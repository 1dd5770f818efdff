"""Efficient Video Sampling: the tokens that differ most from those at their place in the frame before."""

from __future__ import annotations

import numpy as np

from lmmprune.compiler.verify.reference.bipartite import cosine
from lmmprune.compiler.verify.reference.chooser import Chooser


def evs(features: np.ndarray, keep: int, chooser: Chooser, *, views: int) -> list[int]:
    """Return the places of the kept tokens, ascending: all of the first view, and those of the largest change.

    Args:
        features: [views*n,C'], the tokens of the first view, then of the second, ...
        keep: K, at least n.
        chooser: Takes the choices.
        views: How many.
    """
    n = len(features) // views
    change = {j: 1 - cosine(features[j], features[j - n]) for j in range(n, len(features))}
    return sorted([*range(n), *(chooser.largest(change, keep - n, scale=1.0) if keep > n else [])])
