"""Estimates with intervals: paired bootstraps over pictures for accuracies and the like, over rounds for times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_SEED = 0
_CHUNK = 500  # resamples at a time, so that memory stays bounded whatever the number of pictures
_TAIL = 0.025
# Equal shares that were added up in another order may differ by this much; no question weighs so little.
_ROUNDING = 1e-9

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Whether the interval contains a value; its ends belong to it."""
        return self.low - _ROUNDING <= value <= self.high + _ROUNDING

    def above(self, value: float) -> bool:
        """Whether all of the interval is larger than a value."""
        return self.low > value + _ROUNDING

    def below(self, value: float) -> bool:
        """Whether all of the interval is smaller than a value."""
        return self.high < value - _ROUNDING


def resample_means(values: NDArray[Any], pictures: Sequence[str], strata: Sequence[str] | None = None) -> Floats:
    """Return the means over questions when pictures are drawn again, with replacement.

    Questions about one picture are drawn together, because they aren't independent; all cells see the same draws, so
    that differences between columns are paired.

    Args:
        values: ``[cells, questions]``, numbers or whether an answer is right.
        pictures: For every question, what its picture is.
        strata: For every question, what its picture belongs to, so that as many are drawn of each as there are; None:
            all belong together.

    Returns:
        ``[RESAMPLES, cells]``.

    Reference:
        Field and Welsh, 2007, Bootstrapping clustered data.
    """
    names, cluster = np.unique(np.asarray(pictures), return_inverse=True)
    sums = np.zeros((len(names), len(values)))
    np.add.at(sums, cluster, values.T.astype(np.float64))
    asked = np.bincount(cluster, minlength=len(names)).astype(np.float64)
    of = np.zeros(len(names), np.int64)
    if strata is not None:
        of[cluster] = np.unique(np.asarray(strata), return_inverse=True)[1]
    members = [np.flatnonzero(of == stratum) for stratum in np.unique(of)]
    generator = np.random.default_rng(_SEED)
    chunks = []
    for start in range(0, RESAMPLES, _CHUNK):
        drawn = np.empty((min(_CHUNK, RESAMPLES - start), len(names)))
        for own in members:
            drawn[:, own] = generator.multinomial(len(own), np.full(len(own), 1 / len(own)), size=len(drawn))
        chunks.append((drawn @ sums) / (drawn @ asked)[:, None])
    return np.concatenate(chunks)


def estimate(value: float, draws: Floats) -> Estimate:
    """Return a value with the percentile interval of its resamples."""
    low, high = np.quantile(draws, [_TAIL, 1 - _TAIL])
    return Estimate(value=float(value), low=float(low), high=float(high))


def retention(value: float, base: float, draws: Floats, base_draws: Floats) -> Estimate | None:
    """Return ``accuracy / accuracy of the unpruned model``; None where that is 0, be it in one resample."""
    if base == 0 or (base_draws == 0).any():
        return None
    return estimate(value / base, draws / base_draws)


def speedup(slow: Sequence[float], fast: Sequence[float]) -> Estimate:
    """Return the median over rounds of ``slow / fast``, both of the same round."""
    ratios = np.asarray(slow) / np.asarray(fast)
    return estimate(float(np.median(ratios)), np.median(ratios[_rounds(len(ratios))], axis=1))


def speed_interaction(
    base: Sequence[float], prune: Sequence[float], int8: Sequence[float], both: Sequence[float]
) -> Estimate:
    """Return ``speedup(both) / (speedup(prune) * speedup(int8))``, each the median of the ratios within a round.

    Rounds are drawn again for all four together. 1: pruning and INT8 multiply; above: they help each other.
    """
    reference = np.asarray(base)
    drawn = _rounds(len(reference))
    ratios = [reference / np.asarray(times) for times in (prune, int8, both)]
    points = [float(np.median(ratio)) for ratio in ratios]
    medians = [np.median(ratio[drawn], axis=1) for ratio in ratios]
    return estimate(points[2] / (points[0] * points[1]), medians[2] / (medians[0] * medians[1]))


def _rounds(count: int) -> NDArray[np.int64]:
    """Return the rounds of every resample, ``[RESAMPLES, count]``: the same for everything that has so many."""
    return np.random.default_rng(_SEED).integers(0, count, size=(RESAMPLES, count))
