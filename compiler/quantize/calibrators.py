"""The calibrators: from what was seen of an activation to the range whose ends become the outermost integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from lmmprune.compiler.quantize.divergence import divergences
from lmmprune.compiler.quantize.histogram import BINS, Histogram
from lmmprune.errors import InputError, suggestion
from lmmprune.passes.int8.int8 import SCHEMES, Range
from lmmprune.stored import Array


@dataclass(frozen=True, kw_only=True)
class Integers:
    """The integers that an activation becomes.

    Attributes:
        symmetric: Zero point 0; the range reaches as far below zero as above.
        levels: How many there are: 255 for symmetric S8 (-127..127; its -128 isn't counted on), 256 for U8.
    """

    symmetric: bool
    levels: int

    @classmethod
    def of(cls, scheme: str) -> Integers:
        """Return the integers of a scheme in ``SCHEMES``."""
        return cls(symmetric=SCHEMES[scheme].symmetric, levels=SCHEMES[scheme].levels)


class Calibrator(Protocol):
    """Chooses a range; a frozen dataclass whose fields are its parameters.

    Attributes:
        histogram: Whether the bins are needed; else the exact ends are enough, which the graph itself finds.
    """

    @property
    def histogram(self) -> bool:
        """Whether the bins are needed."""

    def range(self, seen: Histogram, integers: Integers) -> Range:
        """Return ``(low, high)``, never wider than what was seen."""


@dataclass(frozen=True, kw_only=True)
class MinMax:
    """Everything that was seen: nothing is clipped."""

    histogram: ClassVar[bool] = False

    def range(self, seen: Histogram, integers: Integers) -> Range:
        """Return the smallest and the largest value."""
        return seen.low, seen.high


@dataclass(frozen=True, kw_only=True)
class Percentile:
    """The shortest range that holds so many percent of the values, to one bin.

    Symmetric: the percentile of ``|x|``. Else half of what is left out lies at each end.

    Reference: Wu et al. 2020, Integer Quantization for Deep Learning Inference, arXiv 2004.09602 (section 3.2, of
    ``|x|``); the two-sided reading is ours.
    """

    histogram: ClassVar[bool] = True
    percentile: float = 99.99

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 100:
            raise InputError(f"calibrator percentile={self.percentile:g}: expected 0 < percentile <= 100")

    def range(self, seen: Histogram, integers: Integers) -> Range:
        """Return the percentiles."""
        share = self.percentile / 100
        if integers.symmetric:
            reach = _holding(seen.folded(), share) * seen.width
            return _within(seen, -reach, reach)
        share = (1 + share) / 2
        below, above = _holding(seen.counts[::-1], share), _holding(seen.counts, share)
        return _within(seen, (seen.bins - below) * seen.width, (above - seen.bins) * seen.width)


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """The range whose quantized distribution has the least Kullback-Leibler divergence from the distribution seen.

    Symmetric: ``|x|`` has ``(levels + 1) / 2`` levels, and every threshold of so many bins or more is tried. Else both
    ends move inwards in proportion, one bin of the longer side at a time. ``divergence.divergences`` states the
    formula.

    Reference: Migacz 2017, 8-bit Inference with TensorRT, GTC 2017 (symmetric). The threshold at the upper edge of the
    last bin, the levels of windows that they don't divide, and the case of two ends are our reading.
    """

    histogram: ClassVar[bool] = True
    bins: int = 2048

    def __post_init__(self) -> None:
        if not 512 <= self.bins <= BINS or self.bins & (self.bins - 1):
            raise InputError(f"calibrator entropy with {self.bins} bins: expected a power of two, 512 to {BINS}")

    def range(self, seen: Histogram, integers: Integers) -> Range:
        """Return the best ends; where there are fewer bins than levels, everything that was seen."""
        seen = seen.coarser(min(self.bins, seen.bins))
        counts = seen.folded() if integers.symmetric else seen.counts
        zero = 0 if integers.symmetric else seen.bins
        levels = (integers.levels + 1) // 2 if integers.symmetric else integers.levels
        used = np.flatnonzero(counts)
        if used.size == 0:
            return seen.low, seen.high
        below, above = max(zero - int(used[0]), 0), max(int(used[-1]) + 1 - zero, 0)
        # The widest first: of equal ones it wins.
        steps = np.arange(max(below, above), 0, -1)
        starts = zero - -(-below * steps // max(below, above))
        stops = zero + -(-above * steps // max(below, above))
        enough = stops - starts >= levels
        if not enough.any():
            return seen.low, seen.high
        starts, stops = starts[enough], stops[enough]
        best = int(np.argmin(divergences(counts, starts, stops, levels)))
        low, high = (int(starts[best]) - zero) * seen.width, (int(stops[best]) - zero) * seen.width
        return _within(seen, -high if integers.symmetric else low, high)


@dataclass(frozen=True, kw_only=True)
class Mse:
    """The range with the least mean squared error of the values after quantizing and back.

    The ends are tried at ``1/grid, 2/grid, ..., 1`` of what was seen: both together, then, if they need not be equal,
    the lower one alone and the upper one alone. A bin's values count as spread evenly over it, for which the error is
    exact: with r = x / scale and n the nearest integer within the limits, ``(x - n scale)**2`` has the antiderivative
    ``scale**3 (n / 12 + (r - n)**3 / 3)``.

    Reference: the criterion is common (e.g. Banner et al. 2018, arXiv 1810.05723); search and integral are ours.
    """

    histogram: ClassVar[bool] = True
    grid: int = 100

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise InputError(f"calibrator mse with a grid of {self.grid}: expected 1 or more")

    def range(self, seen: Histogram, integers: Integers) -> Range:
        """Return the best ends of the grid."""
        low, high = min(seen.low, 0.0), max(seen.high, 0.0)
        if low == high:
            return seen.low, seen.high
        # Nothing clipped comes first: of equal ones it wins.
        shares = np.arange(self.grid, 0, -1) / self.grid
        if integers.symmetric:
            reaches = max(-low, high) * shares
            reach = float(reaches[_best(seen, integers, -reaches, reaches)])
            return _within(seen, -reach, reach)
        together = shares[_best(seen, integers, low * shares, high * shares)]
        high_now = np.full(self.grid, high * together)
        lower = low * shares[_best(seen, integers, low * shares, high_now)]
        upper = high * shares[_best(seen, integers, np.full(self.grid, lower), high * shares)]
        return _within(seen, float(lower), float(upper))


CALIBRATORS: Mapping[str, type[Any]] = {
    "minmax": MinMax,
    "percentile": Percentile,
    "entropy": Entropy,
    "mse": Mse,
}


def get_calibrator(name: str, options: Mapping[str, str] | None = None) -> Calibrator:
    """Return a calibrator by its name in ``CALIBRATORS``.

    Args:
        name: The name.
        options: Its parameters as text, as a command line gives them.

    Raises:
        InputError: No such calibrator or parameter, or a value that doesn't fit.
    """
    if name not in CALIBRATORS:
        raise InputError(f"no calibrator '{name}'{suggestion(name, CALIBRATORS)}")
    kind = CALIBRATORS[name]
    known: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(kind)}
    values = {}
    for key, text in (options or {}).items():
        if key not in known:
            raise InputError(f"calibrator '{name}' has no parameter '{key}': known are {', '.join(known) or 'none'}")
        try:
            values[key] = type(known[key])(text)
        except ValueError as error:
            raise InputError(f"calibrator {name}: {key}={text}: expected a number like {known[key]}") from error
    calibrator: Calibrator = kind(**values)
    return calibrator


def squared_errors(seen: Histogram, integers: Integers, lows: Array, highs: Array) -> Array:
    """Return the mean squared error of quantizing with each of G ranges that contain zero.

    Args:
        seen: The distribution; values spread evenly over their bin.
        integers: What the values become.
        lows: float64 ``[G]``.
        highs: float64 ``[G]``.

    Returns:
        float64 ``[G]``.
    """
    if integers.symmetric:
        largest: Array = np.full(lows.shape, (integers.levels - 1) // 2)
        scale = np.maximum(-lows, highs) / largest
        smallest = -largest
    else:
        scale = (highs - lows) / (integers.levels - 1)
        smallest = np.rint(lows / scale)
        largest = smallest + integers.levels - 1
    used = np.flatnonzero(seen.counts)
    counts = seen.counts[used[0] : used[-1] + 1]
    edges = (np.arange(used[0], used[-1] + 2) - seen.bins) * seen.width
    r = edges / scale[:, None]
    n = np.clip(np.rint(r), smallest[:, None], largest[:, None])
    beside = r - n
    integral = n / 12 + beside * beside * beside / 3
    errors: Array = scale**3 * (np.diff(integral, axis=1) @ counts) / (seen.width * counts.sum())
    return errors


def _best(seen: Histogram, integers: Integers, lows: Array, highs: Array) -> int:
    return int(np.argmin(squared_errors(seen, integers, lows, highs)))


def _holding(counts: Array, share: float) -> int:
    """Return how many bins from the first one on hold a share of all counts."""
    total = np.cumsum(counts)
    return int(np.searchsorted(total, share * total[-1])) + 1


def _within(seen: Histogram, low: float, high: float) -> Range:
    return max(low, seen.low), min(high, seen.high)
