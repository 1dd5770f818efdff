"""Histograms and calibrators against what NumPy computes straight from the formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmmprune.compiler.quantize.calibrators import (
    CALIBRATORS,
    Entropy,
    Integers,
    MinMax,
    Mse,
    Percentile,
    get_calibrator,
    squared_errors,
)
from lmmprune.compiler.quantize.divergence import divergences
from lmmprune.compiler.quantize.histogram import Histogram
from lmmprune.errors import InputError

U8, S8 = Integers.of("u8s8"), Integers.of("s8s8")
FLOATS = arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32))
BOTH = pytest.mark.parametrize("integers", [U8, S8], ids=["u8", "s8"])


def histogram(*pieces: np.ndarray, bins: int = 8192) -> Histogram:
    made = Histogram(name="x", bins=bins)
    for piece in pieces:
        made.update(piece)
    return made


def same(a: Histogram, b: Histogram) -> bool:
    ends = (a.low, a.high, a.exponent) == (b.low, b.high, b.exponent)
    return ends and np.array_equal(a.counts, b.counts)


def heavy(seed: int, size: int = 20_000) -> np.ndarray:
    """Return values with heavy tails on both sides, more above zero."""
    rng = np.random.default_rng(seed)
    return (rng.standard_t(4, size) + 0.3 * rng.standard_normal(size) ** 2).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(values=FLOATS, bins=st.sampled_from([2, 16, 512]))
def test_counts_are_those_of_binning_at_the_end(values: np.ndarray, bins: int) -> None:
    found = histogram(values, bins=bins)
    reach = np.abs(values.astype(np.float64)).max()
    if reach:
        assert reach < bins * found.width
        assert reach >= bins * found.width / 2, "a smaller power of two would have done"
    edges = np.arange(-bins, bins + 1) * found.width
    expected = [np.count_nonzero((values >= a) & (values < b)) for a, b in itertools.pairwise(edges)]
    assert found.counts.tolist() == expected
    assert (found.low, found.high) == (values.min(), values.max())
    magnitudes = found.folded()
    assert magnitudes.sum() == values.size


@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(FLOATS, min_size=1, max_size=5), order=st.randoms(use_true_random=False))
def test_order_and_pieces_do_not_matter(pieces: list[np.ndarray], order: object) -> None:
    whole = histogram(np.concatenate(pieces), bins=64)
    assert same(histogram(*pieces, bins=64), whole)
    shuffled = list(pieces)
    order.shuffle(shuffled)  # type: ignore[attr-defined]  # it is a random.Random
    merged = Histogram(name="x", bins=64)
    for piece in shuffled:
        merged.merge(histogram(piece, bins=64))
    assert same(merged, whole)
    assert same(whole.coarser(8), histogram(*pieces, bins=8))


def test_growth_over_hundreds_of_doublings_keeps_every_count() -> None:
    tiny, large = np.full(7, -1e-30, np.float32), np.array([1e30, 0.0], np.float32)
    found = histogram(tiny, large, bins=4)
    assert found.counts[3] == 7, "just below zero"
    assert found.counts[4] == 1, "zero itself"
    assert found.counts.sum() == 9
    assert same(found, histogram(large, tiny, bins=4))
    assert not histogram(np.zeros(0, np.float32)).counts.any()


def test_values_beyond_one_piece_and_of_other_types() -> None:
    values = heavy(0, 2**20 + 3)
    found = histogram(values[:-3].reshape(2, -1), values[-3:], bins=1024)
    index = np.floor(values.astype(np.float64) / found.width).astype(int)
    assert np.array_equal(found.counts, np.bincount(index + 1024, minlength=2048))
    half = values[:1000].astype(np.float16)
    assert same(histogram(half), histogram(half.astype(np.float64)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name(bad: float) -> None:
    for bins in (0, 64):
        made = Histogram(name="layers.3/mlp", bins=bins)
        made.update(np.ones(3, np.float32))
        with pytest.raises(InputError, match=r"'layers.3/mlp' holds NaN or infinity"):
            made.update(np.array([1.0, bad, 2.0], np.float32))


@BOTH
def test_minmax_is_the_ends(integers: Integers) -> None:
    values = heavy(1)
    assert MinMax().range(histogram(values, bins=0), integers) == (values.min(), values.max())


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.99, 100.0])
@pytest.mark.parametrize("seed", range(3))
def test_percentile_is_numpys_to_one_bin(percentile: float, seed: int) -> None:
    values = heavy(seed).astype(np.float64)
    seen = histogram(values)
    calibrator = Percentile(percentile=percentile)
    low, high = calibrator.range(seen, S8)
    wanted = np.percentile(np.abs(values), percentile, method="inverted_cdf")
    assert wanted <= max(-low, high) <= wanted + seen.width
    low, high = calibrator.range(seen, U8)
    tail = (100 - percentile) / 2
    above = np.percentile(values, 100 - tail, method="inverted_cdf")
    below = -np.percentile(-values, 100 - tail, method="inverted_cdf")
    assert above <= high <= above + seen.width
    assert below - seen.width <= low <= below


def quantized(values: np.ndarray, low: float, high: float, integers: Integers) -> np.ndarray:
    """Quantize and back, as QuantizeLinear and DequantizeLinear do."""
    if integers.symmetric:
        scale, smallest, largest = max(-low, high) / 127, -127, 127
    else:
        scale = (high - low) / 255
        smallest = round(low / scale)
        largest = smallest + 255
    return np.clip(np.rint(values / scale), smallest, largest) * scale


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_the_squared_error_is_that_of_quantizing_the_values(integers: Integers, seed: int) -> None:
    values = heavy(seed).astype(np.float64)
    seen = histogram(values)
    shares = np.array([1.0, 0.6, 0.3, 0.1])
    lows, highs = values.min() * shares, values.max() * shares[::-1]
    found = squared_errors(seen, integers, lows, highs)
    expected = [np.mean((values - quantized(values, a, b, integers)) ** 2) for a, b in zip(lows, highs, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=0.01)


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_mse_is_the_best_of_its_grid(integers: Integers, seed: int) -> None:
    values = heavy(seed).astype(np.float64)
    calibrator = Mse(grid=40)
    low, high = calibrator.range(histogram(values), integers)
    shares = np.arange(1, 41) / 40

    def error(a: float, b: float) -> float:
        return float(np.mean((values - quantized(values, a, b, integers)) ** 2))

    if integers.symmetric:
        reach = np.abs(values).max()
        best = min(error(-reach * share, reach * share) for share in shares)
        assert max(-low, high) in reach * shares
    else:
        best = min(error(values.min() * share, values.max() * share) for share in shares)
    assert error(low, high) <= best * 1.01
    assert error(low, high) < error(values.min(), values.max())


def divergence(counts: np.ndarray, start: int, stop: int, levels: int) -> float:
    """Return KL(P || Q) as the pseudo-code goes: bin by bin."""
    p = counts[start:stop].astype(np.float64)
    inside = p.copy()
    p[0] += counts[:start].sum()
    p[-1] += counts[stop:].sum()
    level = np.arange(stop - start) * levels // (stop - start)
    q = np.zeros_like(p)
    for one in range(levels):
        members = (level == one) & (inside > 0)
        if members.any():
            q[members] = inside[level == one].sum() / members.sum()
    if q.sum() == 0:
        return math.inf
    p, q = p / p.sum(), q / q.sum()
    if (q[p > 0] == 0).any():
        return math.inf
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


@settings(max_examples=200, deadline=None)
@given(
    counts=arrays(np.int64, st.integers(8, 40), elements=st.integers(0, 50)).filter(lambda counts: counts.any()),
    levels=st.integers(2, 8),
    data=st.data(),
)
def test_divergence_is_that_of_the_definition(counts: np.ndarray, levels: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, counts.size - levels))
    stop = data.draw(st.integers(start + levels, counts.size))
    found = divergences(counts, np.array([start]), np.array([stop]), levels)[0]
    expected = divergence(counts, start, stop, levels)
    assert found == expected or found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_entropy_is_the_best_threshold(seed: int) -> None:
    seen = histogram(heavy(seed), bins=512)
    low, high = Entropy(bins=512).range(seen, S8)
    counts = seen.folded()
    last = int(np.flatnonzero(counts)[-1]) + 1
    errors = {stop: divergence(counts, 0, stop, 128) for stop in range(128, last + 1)}
    chosen = round(max(-low, high) / seen.width)
    assert max(-low, high) == pytest.approx(min(chosen * seen.width, max(seen.high, -seen.low)))
    assert errors[chosen] == pytest.approx(min(errors.values()), rel=1e-9)


def test_entropy_moves_both_ends_in_proportion() -> None:
    seen = histogram(heavy(3), bins=512)
    low, high = Entropy(bins=512).range(seen, U8)
    used = np.flatnonzero(seen.counts)
    below, above = 512 - int(used[0]), int(used[-1]) + 1 - 512
    errors = {}
    for step in range(1, max(below, above) + 1):
        a, b = math.ceil(step * below / max(below, above)), math.ceil(step * above / max(below, above))
        if a + b >= 256:
            errors[a, b] = divergence(seen.counts, 512 - a, 512 + b, 256)
    best = min(errors.values())
    good = [ends for ends, error in errors.items() if error <= best + 1e-12]
    assert any((low, high) == (max(-a * seen.width, seen.low), min(b * seen.width, seen.high)) for a, b in good)


@BOTH
@pytest.mark.parametrize("name", CALIBRATORS)
def test_every_calibrator_stays_within_what_was_seen(name: str, integers: Integers) -> None:
    for values in (
        np.zeros(5, np.float32),
        np.full(5, 3.0, np.float32),
        -np.abs(heavy(0)),
        np.abs(heavy(0)),
        np.array([1e-20, -3e-20], np.float32),
    ):
        seen = histogram(values)
        low, high = get_calibrator(name).range(seen, integers)
        assert seen.low <= low <= high <= seen.high


def test_a_calibrator_is_asked_for_by_name() -> None:
    assert get_calibrator("percentile", {"percentile": "99.5"}) == Percentile(percentile=99.5)
    assert get_calibrator("mse", {"grid": "7"}) == Mse(grid=7)
    for name, options, message in (
        ("entrophy", {}, "did you mean 'entropy'"),
        ("minmax", {"bins": "3"}, "no parameter 'bins': known are none"),
        ("mse", {"grid": "many"}, "grid=many: expected a number like 100"),
        ("mse", {"grid": "0"}, "expected 1 or more"),
        ("percentile", {"percentile": "0"}, "expected 0 < percentile"),
        ("entropy", {"bins": "1000"}, "expected a power of two"),
    ):
        with pytest.raises(InputError, match=message):
            get_calibrator(name, options)
