"""Every comparison of scores goes through here, so that near-ties are noticed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

Scale = float | Mapping[int, float] | None


def round_half_up(value: float) -> int:
    """2.5 -> 3."""
    return math.floor(value + 0.5)


class Chooser:
    """Choose by score, the lower index on ties, and remember the smallest relative gap that decided anything.

    ``scale`` is what a gap is divided by. Without it, that is the larger of the two magnitudes compared, which suits
    probabilities; scores that are differences or cosines carry errors of their terms' size and name a scale, for all
    or, as a mapping, for each.
    """

    def __init__(self) -> None:
        self.margin = math.inf

    def note(self, one: float, other: float, scale: float | None = None) -> None:
        """Note that it mattered which of the two is larger."""
        size = max(abs(one), abs(other)) if scale is None else scale
        self.margin = min(self.margin, abs(one - other) / size if size > 0 else 0.0)

    def largest(self, scores: Mapping[int, float], count: int, scale: Scale = None) -> list[int]:
        """Return the ``count`` keys of largest score, descending."""
        order = sorted(scores, key=lambda j: (-scores[j], j))
        if 0 < count < len(order):
            self._note(scores, order[count - 1], order[count], scale)
        return order[:count]

    def best(self, scores: Mapping[int, float], scale: Scale = None) -> int:
        """Return the key of the largest score of a greedy step; where all are equal by construction, the lowest."""
        if len(set(scores.values())) == 1:
            return min(scores)
        (best,) = self.largest(scores, 1, scale)
        return best

    def smallest(self, scores: Mapping[int, float], count: int, scale: Scale = None) -> list[int]:
        """Return the ``count`` keys of smallest score, ascending."""
        return self.largest({j: -score for j, score in scores.items()}, count, scale)

    def ranked(self, scores: Mapping[int, float], scale: Scale = None) -> list[int]:
        """Return all keys, descending: here every neighbouring pair decides something."""
        order = self.largest(scores, len(scores))
        for one, other in itertools.pairwise(order):
            self._note(scores, one, other, scale)
        return order

    def _note(self, scores: Mapping[int, float], one: int, other: int, scale: Scale) -> None:
        size = max(scale[one], scale[other]) if isinstance(scale, Mapping) else scale
        self.note(scores[one], scores[other], size)
