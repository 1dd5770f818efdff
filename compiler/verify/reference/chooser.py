"""Every comparison of scores goes through here, so that near-ties are noticed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping


def round_half_up(value: float) -> int:
    """2.5 -> 3."""
    return math.floor(value + 0.5)


class Chooser:
    """Choose by score, the lower index on ties, and remember the smallest relative gap that decided anything.

    ``scale`` is what a gap is divided by. Without it, that is the larger of the two magnitudes compared, which suits
    probabilities; scores that are differences or cosines carry errors of their terms' size and name a scale.
    """

    def __init__(self) -> None:
        self.margin = math.inf

    def note(self, one: float, other: float, scale: float | None = None) -> None:
        """Note that it mattered which of the two is larger."""
        size = max(abs(one), abs(other)) if scale is None else scale
        self.margin = min(self.margin, abs(one - other) / size if size > 0 else 0.0)

    def largest(self, scores: Mapping[int, float], count: int, scale: float | None = None) -> list[int]:
        """Return the ``count`` keys of largest score, descending."""
        order = sorted(scores, key=lambda j: (-scores[j], j))
        if 0 < count < len(order):
            self.note(scores[order[count - 1]], scores[order[count]], scale)
        return order[:count]

    def smallest(self, scores: Mapping[int, float], count: int, scale: float | None = None) -> list[int]:
        """Return the ``count`` keys of smallest score, ascending."""
        return self.largest({j: -score for j, score in scores.items()}, count, scale)

    def ranked(self, scores: Mapping[int, float], scale: float | None = None) -> list[int]:
        """Return all keys, descending: here every neighbouring pair decides something."""
        order = self.largest(scores, len(scores))
        for one, other in itertools.pairwise(order):
            self.note(scores[one], scores[other], scale)
        return order
