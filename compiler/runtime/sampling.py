"""Draw a token instead of taking the likeliest one: temperature, top-k and top-p in transformers' order and meaning."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lmmprune.errors import InputError

Pick = Callable[[NDArray[Any]], int]


class Picks(Protocol):
    """Chooses the tokens of answers."""

    def start(self) -> Pick:
        """Return what chooses the tokens of one answer from their scores ``[V]``, one call after the other."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the tokens of an answer are chosen from their scores.

    Attributes:
        temperature: Scores are divided by it; 0 takes the likeliest token. None: it isn't given, which is 0 too.
        top_k: Draw only from so many of the likeliest tokens, and from those that are as likely; 0: from all.
        top_p: Draw only from the likeliest tokens that together have this share of the probability, in 0..1.
        seed: The same seed gives the same answer; None: every answer is another.

    Raises:
        InputError: A value is out of its range, or says how to draw where nothing is drawn.
    """

    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature:g}: expected 0 (the likeliest token) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p:g}: expected 0 < top_p <= 1, and 1 draws from all tokens")
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}: expected 0 (draw from all tokens) or more")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"seed is {self.seed}: expected 0 or more")
        given = {"top_k": self.top_k != 0, "top_p": self.top_p != 1, "seed": self.seed is not None}
        if self.temperature is None and any(given.values()):
            name = next(name for name, is_given in given.items() if is_given)
            raise InputError(
                f"{name} says how to draw, and nothing is drawn without a temperature: give one, such as 1"
            )

    def start(self) -> Pick:
        """Return what chooses the tokens of one answer from their scores ``[V]``, one call after the other."""
        if not self.temperature:
            return lambda scores: int(scores.argmax())
        # Python promises that the numbers behind a seed stay the same in every release.
        numbers = random.Random(self.seed)
        return lambda scores: self._draw(scores, numbers.random())

    def probabilities(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        """Return the probability ``[V]`` of every token; 0 for those that are never drawn.

        Args:
            scores: ``[V]``, of any floating-point type; the largest must be finite.
        """
        assert self.temperature
        raw = scores.astype(np.float64)
        with np.errstate(over="ignore"):
            # Less the largest, so that no temperature is too small; the rest in 32 bits, as the reference.
            warped = ((raw - raw.max()) / self.temperature).astype(np.float32)
        if 0 < self.top_k < len(warped):
            warped[warped < np.partition(warped, -self.top_k)[-self.top_k]] = -np.inf
        if self.top_p < 1:
            order = np.argsort(warped, kind="stable")
            shares = np.exp(warped[order])
            below = np.cumsum(shares / shares.sum(), dtype=np.float32) <= np.float32(1 - self.top_p)
            below[-1] = False  # the likeliest one always stays
            warped[order[below]] = -np.inf
        weights = np.exp(warped, dtype=np.float64)
        return np.asarray(weights / weights.sum())

    def _draw(self, scores: NDArray[Any], number: float) -> int:
        best = int(scores.argmax())
        if not np.isfinite(scores[best]):
            return best  # nothing to draw from: whoever asked refuses it
        reached = np.cumsum(self.probabilities(scores))
        # Tokens without probability add nothing: the first one that gets beyond the number has some.
        return int(np.searchsorted(reached, min(number * reached[-1], np.nextafter(reached[-1], 0)), side="right"))


GREEDY = Sampling()
"""The likeliest token, every time."""
