"""DART: pivots of large norm, and the visual tokens that are least like them."""

from __future__ import annotations

import math

import numpy as np

from lmmprune.compiler.verify.reference.chooser import Chooser
from lmmprune.compiler.verify.reference.greedy import cosines


def dart(
    x: np.ndarray,
    visual: list[int],
    text: list[int],
    norms: np.ndarray,
    keep: int,
    chooser: Chooser,
    *,
    image_pivots: int = 4,
    text_pivots: int = 4,
) -> list[int]:
    """Return the kept places among the visual tokens, ascending.

    Args:
        x: [T,C], compared by cosine.
        visual: Rows of the n visual tokens.
        text: Rows of the other tokens that may be pivots.
        norms: [T]; the largest are the pivots'.
        keep: K.
        chooser: Takes the choices.
        image_pivots: Visual ones.
        text_pivots: Of the others.
    """
    size = dict(enumerate(float(norm) for norm in norms))
    own = chooser.largest({row: size[row] for row in visual}, min(image_pivots, keep))
    asked = chooser.largest({row: size[row] for row in text}, min(text_pivots, len(text)))
    pivots = own + asked + text[-1:] * (text_pivots - len(asked))
    kept, left = list(own), keep - len(own)
    if left > 0:
        # Who comes first takes first.
        chooser.ranked({row: size[row] for row in own})
        chooser.ranked({row: size[row] for row in asked})
    for p, pivot in enumerate(pivots):
        share = math.ceil((keep - len(kept)) / (len(pivots) - p))
        others = [row for row in visual if row not in kept]
        near = dict(zip(others, (float(c) for c in cosines(x[others], x[[pivot]])[:, 0]), strict=True))
        kept += chooser.smallest(near, share, scale=1.0)
    return sorted(visual.index(row) for row in kept)
