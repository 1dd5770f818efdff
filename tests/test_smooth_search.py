"""The strength of smoothing: factors from the formula, a search for the least error, nothing where all is even."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from random_models import SHAPES
from test_smooth_quant import pruned

from lmmprune.compiler.quantize.channels import ChannelStats
from lmmprune.compiler.quantize.smooth import STRENGTHS, factors, search
from lmmprune.passes.int8.smooth_quant import Smoothable, find_smoothable


@pytest.mark.parametrize("alpha", STRENGTHS)
def test_factors_are_the_formula_up_to_a_common_factor(alpha: float) -> None:
    rng = np.random.default_rng(0)
    maxima = np.exp(rng.normal(size=12)).astype(np.float32)
    weight = rng.standard_normal((12, 7)).astype(np.float32)
    expected = [maxima[j] ** alpha / max(abs(w) for w in weight[j]) ** (1 - alpha) for j in range(12)]
    ratio = factors(maxima, np.abs(weight).max(axis=1), alpha) / np.array(expected)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


def test_silent_channels_and_unread_ones_stay() -> None:
    maxima = np.array([1, 0, 4, 2], np.float32)
    weight = np.array([[1, 2], [1, 1], [0, 0], [3, 1]], np.float32)
    found = factors(maxima, np.abs(weight).max(axis=1), 0.5)
    assert found[1] == found[2] == 1
    assert np.isfinite(found).all()
    assert (found > 0).all()


def group() -> tuple[Smoothable, int]:
    found = find_smoothable(pruned(SHAPES[0], None)[1])[0]
    return found, int(found.readers[0].inputs[1].shape[0])


def stats(rows: np.ndarray) -> dict[str, ChannelStats]:
    return {str(group()[0].value.name): ChannelStats(lows=rows.min(0), highs=rows.max(0), rows=rows)}


def test_an_outlier_is_smoothed_and_the_reported_errors_are_those_of_the_products() -> None:
    first, channels = group()
    rows = np.random.default_rng(1).standard_normal((64, channels)).astype(np.float32)
    rows[:, 2] *= 80
    (found,) = search([first], stats(rows), symmetric=True).values()
    assert found.alpha in STRENGTHS
    assert found.after < found.before / 2
    assert found.outlier > 30
    weight = np.concatenate([r.inputs[1].const_value.numpy() for r in first.readers], axis=1)

    def int8(x: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
        return np.clip(np.round(x / scale), -127, 127) * scale

    for s, expected in ((np.ones(channels), found.before), (found.factors.astype(float), found.after)):
        x, w = rows / s, weight * s[:, None]
        product = int8(x, np.abs(x).max() / 127) @ int8(w, np.abs(w).max(0) / 127)
        exact = rows.astype(float) @ weight
        assert np.linalg.norm(product - exact) / np.linalg.norm(exact) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("alpha", [0.2, 0.9])
def test_only_the_given_strengths_are_tried(alpha: float) -> None:
    first, channels = group()
    rows = np.random.default_rng(1).standard_normal((64, channels)).astype(np.float32)
    rows[:, 2] *= 80
    seen = stats(rows)
    (found,) = search([first], seen, symmetric=True, strengths=(alpha,)).values()
    assert found.alpha == alpha
    reach = np.max([np.abs(reader.inputs[1].const_value.numpy()).max(axis=1) for reader in first.readers], axis=0)
    np.testing.assert_array_equal(found.factors, factors(np.abs(rows).max(axis=0), reach, alpha))


def test_even_channels_are_left_alone() -> None:
    first, channels = group()
    for reader in first.readers:
        weight = reader.inputs[1]
        weight.const_value = ir.Tensor(np.sign(weight.const_value.numpy()).astype(np.float32), name=weight.name)
    rows = np.sign(np.random.default_rng(2).standard_normal((64, channels))).astype(np.float32)
    name = str(first.value.name)
    (found,) = search(
        [first], {name: ChannelStats(lows=rows.min(0), highs=rows.max(0), rows=rows)}, symmetric=True
    ).values()
    assert (found.alpha, found.factors) == (None, None)
    assert found.after == found.before
