"""A histogram of a stream whose bins are multiples of a power of two: growing, splitting and merging are exact."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from lmmprune.errors import InputError
from lmmprune.stored import Array

BINS = 8192
"""Bins on each side of zero: a thousand times the median is still told apart from the median."""

_SMALLEST = -1000  # exponent of the bins while there is nothing but zeros
_PIECE = 2**20  # values that are binned at once


@dataclass(kw_only=True)
class Histogram:
    """Counts of the values in ``[i * 2**exponent, (i + 1) * 2**exponent)`` for -bins <= i < bins, and the exact ends.

    The exponent is the smallest one for which every value fits. When a larger value comes, pairs of bins become one.
    Halving an index rounds down as dividing by the doubled width does, so the counts are those of binning everything
    at the end: they depend neither on the order of the values nor on how they are cut into pieces.

    Attributes:
        name: Value of the graph, for messages.
        bins: Bins on each side of zero, n: a power of two; 0 keeps the ends only.
        low: Smallest value, +infinity before the first.
        high: Largest value, -infinity before the first.
        exponent: Base-2 logarithm of the width of a bin.
        counts: int64 ``[2n]``; the first n are below zero.
    """

    name: str
    bins: int = BINS
    low: float = math.inf
    high: float = -math.inf
    exponent: int = _SMALLEST
    counts: Array = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        if self.bins & (self.bins - 1):
            raise InputError(f"a histogram with {self.bins} bins: expected a power of two")
        if self.counts.size == 0:
            self.counts = np.zeros(2 * self.bins, np.int64)

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    def update(self, values: Array) -> None:
        """Count values of any shape and floating-point type.

        Raises:
            InputError: One of them is NaN or infinite.
        """
        if values.size == 0:
            return
        self.extend(float(values.min()), float(values.max()))
        if not self.bins:
            return
        flat = values.reshape(-1)
        for start in range(0, flat.size, _PIECE):
            # In float64 the scaling by a power of two is exact for every float32.
            scaled = flat[start : start + _PIECE].astype(np.float64) * math.ldexp(1.0, -self.exponent)
            index = np.floor(scaled, out=scaled).astype(np.int64) + self.bins
            self.counts += np.bincount(index, minlength=2 * self.bins)

    def extend(self, low: float, high: float) -> None:
        """Move the ends outwards, without counting anything.

        Raises:
            InputError: An end is NaN or infinite.
        """
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError(
                f"'{self.name}' holds NaN or infinity on the calibration data, INT8 needs finite activations:"
                " check the checkpoint, or export without --int8"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.bins:
            self._grow(_exponent(max(abs(low), abs(high)) / self.bins))

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram of the same value."""
        if other.bins != self.bins:
            raise ValueError(f"histograms of {self.bins} and {other.bins} bins don't merge")
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self._grow(other.exponent)
        self.counts += _paired(other.counts, self.exponent - other.exponent)

    def coarser(self, bins: int) -> Histogram:
        """Return the histogram that fewer bins on each side would have given."""
        if not 0 < bins <= self.bins:
            raise ValueError(f"{bins} bins from {self.bins}")
        times = (self.bins // bins).bit_length() - 1
        middle = _paired(self.counts, times)[self.bins - bins : self.bins + bins]
        exponent = self.exponent + times if self.exponent > _SMALLEST else _SMALLEST
        return Histogram(
            name=self.name, bins=bins, low=self.low, high=self.high, exponent=exponent, counts=middle.copy()
        )

    def folded(self) -> Array:
        """Return the counts of the absolute values, int64 ``[n]``."""
        folded: Array = self.counts[self.bins :] + self.counts[: self.bins][::-1]
        return folded

    def _grow(self, exponent: int) -> None:
        if exponent > self.exponent:
            self.counts = _paired(self.counts, exponent - self.exponent)
            self.exponent = exponent


def _exponent(least: float) -> int:
    """Return the smallest e with ``least < 2**e``."""
    return max(math.frexp(least)[1], _SMALLEST) if least else _SMALLEST


def _paired(counts: Array, times: int) -> Array:
    """Return counts of the same length with bins 2**times as wide, zero staying in the middle."""
    if times == 0:
        return counts
    bins = counts.size // 2
    group = min(2 ** min(times, 63), bins)
    below, above = (side.reshape(-1, group).sum(1) for side in (counts[:bins], counts[bins:]))
    paired = np.zeros_like(counts)
    paired[bins - below.size : bins] = below
    paired[bins : bins + above.size] = above
    return paired
