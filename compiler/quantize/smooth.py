"""Search how far to smooth each activation: the strength whose INT8 product errs least on calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmmprune.compiler.quantize.channels import ChannelStats
from lmmprune.lazy import values_of
from lmmprune.passes.int8.int8 import Range, quantization, weight_scales
from lmmprune.passes.int8.smooth_quant import Smoothable
from lmmprune.stored import Array

STRENGTHS = (0.2, 0.3, 0.4, 0.5)
"""Alphas that are tried, beside no smoothing at all.

0.5 shares the burden evenly. What larger ones change is measured in docs/results/smoothing_strengths.md; they blow up
channels that were seen small, which are clipped where another picture makes them large."""

_LEAST_GAIN = 0.02
"""An error that shrinks by a smaller part is left alone: the rows are a sample."""
_ROUNDING = 1e-5
"""So is one that shrinks by less than this: the products themselves are float32."""
_COLUMNS = 512


@dataclass(frozen=True, kw_only=True)
class Smoothed:
    """What the search found for one activation.

    Attributes:
        alpha: The strength; None leaves the activation as it is.
        factors: s ``[C]`` float32; None with no alpha.
        before: Relative error of the INT8 products without smoothing, Frobenius norms over the sampled rows.
        after: The same with it.
        outlier: How many times larger the largest channel is than the median one, before.
    """

    alpha: float | None
    factors: Array | None
    before: float
    after: float
    outlier: float


def search(
    groups: Sequence[Smoothable],
    stats: Mapping[str, ChannelStats],
    *,
    symmetric: bool,
    strengths: Sequence[float] = STRENGTHS,
) -> dict[str, Smoothed]:
    """Return the best strength for each activation, by its name.

    Args:
        groups: What can be smoothed; the readers' weights are read, one activation's at a time.
        stats: What was seen of each activation.
        symmetric: Whether activations are quantized around zero, else over the range that they have.
        strengths: Alphas to try, 0..1.

    Reference:
        Xiao et al. 2023, SmoothQuant, arXiv 2211.10438, eq. 4. One strength per activation instead of one per model,
        chosen by the error of its own products, is our reading.
    """
    found = {}
    for group in groups:
        weights = [values_of(reader.inputs[1]) for reader in group.readers]
        found[str(group.value.name)] = _search(stats[str(group.value.name)], weights, symmetric, strengths)
    return found


def factors(maxima: Array, rows: Array, alpha: float) -> Array:
    """Return s ``[C] = max|x|^alpha / max|w|^(1-alpha)``, 1 where a channel or its weights are zero.

    Args:
        maxima: ``[C]``, the largest absolute value of each channel.
        rows: ``[C]``, the same of the rows of all weights that read the activation.
        alpha: Strength, 0..1.
    """
    usable = (maxima > 0) & (rows > 0)
    result = np.ones_like(maxima, np.float32)
    result[usable] = maxima[usable] ** alpha / rows[usable] ** (1 - alpha)
    # A common factor changes nothing but the range of float16: its geometric mean becomes 1.
    result[usable] /= np.exp(np.log(result[usable]).mean()) if usable.any() else 1
    return np.clip(result, 1e-4, 1e4).astype(np.float32)


def _search(stats: ChannelStats, weights: Sequence[Array], symmetric: bool, strengths: Sequence[float]) -> Smoothed:
    maxima = stats.maxima
    reach = np.max([np.abs(block).max(axis=1) for block in _blocks(weights)], axis=0)
    tried: dict[float | None, Array] = {None: np.ones_like(maxima)}
    tried |= {alpha: factors(maxima, reach, alpha) for alpha in strengths}
    rows = {}
    for alpha, s in tried.items():
        ends = (float((stats.lows / s).min()), float((stats.highs / s).max()))
        rows[alpha] = _as_activation(stats.rows / s, ends, symmetric)
    squares = dict.fromkeys(tried, 0.0)
    total = 0.0
    for block in _blocks(weights):
        exact = stats.rows @ block
        total += float(np.square(exact, dtype=np.float64).sum())
        for alpha, s in tried.items():
            difference = rows[alpha] @ _as_weight(block * s[:, None]) - exact
            squares[alpha] += float(np.square(difference, dtype=np.float64).sum())
    errors = {alpha: float(np.sqrt(square / (total or 1.0))) for alpha, square in squares.items()}
    before = errors.pop(None)
    best = min(errors, key=lambda alpha: errors[alpha])
    outlier = float(maxima.max() / max(float(np.median(maxima)), 1e-30))
    if before - errors[best] < max(_LEAST_GAIN * before, _ROUNDING):
        return Smoothed(alpha=None, factors=None, before=before, after=before, outlier=outlier)
    return Smoothed(alpha=best, factors=tried[best], before=before, after=errors[best], outlier=outlier)


def _blocks(weights: Sequence[Array]) -> Iterator[Array]:
    """Yield columns of weights ``[C,N]`` as float32, some at a time; each has its own scale, so they don't mix."""
    for weight in weights:
        for start in range(0, weight.shape[1], _COLUMNS):
            yield weight[:, start : start + _COLUMNS].astype(np.float32)


def _as_activation(values: Array, ends: Range, symmetric: bool) -> Array:
    """Return values as INT8 sees them, with one scale for all."""
    scale, zero = quantization(ends, symmetric=symmetric)
    low, high = (-127, 127) if symmetric else (0, 255)
    return np.asarray((np.clip(np.rint(values / scale) + zero, low, high) - zero) * scale, np.float32)


def _as_weight(weight: Array) -> Array:
    """Return a weight ``[C,N]`` as INT8 sees it, with a scale for each column; the argument is overwritten."""
    scales = weight_scales(weight, 1)
    weight /= scales
    np.rint(weight, out=weight)
    weight *= scales
    return weight
