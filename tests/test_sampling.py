"""Drawing tokens: kept sets and probabilities against transformers' warpers, draws against the probabilities."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lmmprune.compiler.runtime.sampling import GREEDY, Sampling
from lmmprune.errors import InputError


def theirs(scores: np.ndarray[Any, Any], sampling: Sampling) -> np.ndarray[Any, Any]:
    """Return the probabilities that transformers draws from, with the order of its ``generate``."""
    assert sampling.temperature
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    warped = warpers(torch.zeros(1, 1, dtype=torch.int64), torch.tensor(scores, dtype=torch.float32)[None])
    return torch.softmax(warped.double(), dim=-1)[0].numpy()


def logits(seed: int, size: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(scale=3, size=size).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [0, 1, 5, 200])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 1e-6])
def test_kept_set_and_probabilities_are_transformers(temperature: float, top_k: int, top_p: float) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    for seed in range(20):
        scores = logits(seed, 100)
        found, expected = sampling.probabilities(scores), theirs(scores, sampling)
        np.testing.assert_array_equal(found > 0, expected > 0)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)


@settings(deadline=None, max_examples=300)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 400),
    temperature=st.floats(0.05, 20),
    top_k=st.integers(0, 500),
    top_p=st.floats(0.01, 1),
)
def test_any_setting(seed: int, size: int, temperature: float, top_k: int, top_p: float) -> None:
    sampling, scores = Sampling(temperature=temperature, top_k=top_k, top_p=top_p), logits(seed, size)
    found, expected = sampling.probabilities(scores), theirs(scores, sampling)
    # Rounding decides about a token on the edge of top_p: its share is all that may differ.
    edge = float(found[(found > 0) != (expected > 0)].sum() + expected[(found > 0) != (expected > 0)].sum())
    assert ((found > 0) != (expected > 0)).sum() <= 1
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6 + edge)


def test_the_order_is_temperature_top_k_top_p() -> None:
    """Each order of the three leaves another set here."""
    scores = np.log(np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04], np.float32))
    sampling = Sampling(temperature=2.0, top_k=4, top_p=0.7)
    assert (sampling.probabilities(scores) > 0).tolist() == [True, True, True, False, False, False]
    assert (Sampling(temperature=2.0, top_p=0.7).probabilities(scores) > 0).sum() == 4, "top_p before top_k"
    assert (Sampling(temperature=1.0, top_k=4, top_p=0.7).probabilities(scores) > 0).sum() == 2, "top_p before both"


def test_as_likely_ones_stay_together() -> None:
    scores = np.array([1, 3, 2, 2, 2, 0], np.float32)
    sampling = Sampling(temperature=1.0, top_k=2)
    found = sampling.probabilities(scores)
    assert (found > 0).tolist() == [False, True, True, True, True, False]
    np.testing.assert_allclose(found, theirs(scores, sampling), rtol=1e-6)


@pytest.mark.parametrize("sampling", [Sampling(temperature=1.3, seed=7), Sampling(temperature=0.9, top_p=0.9, seed=8)])
def test_draws_follow_the_probabilities(sampling: Sampling) -> None:
    scores, draws = logits(3, 12) / 3, 20_000
    pick, expected = sampling.start(), theirs(logits(3, 12) / 3, sampling)
    counts = np.bincount([pick(scores) for _ in range(draws)], minlength=12)
    assert counts[expected == 0].sum() == 0
    drawn = expected > 0
    shares = expected[drawn].astype(np.float64)
    assert chisquare(counts[drawn], shares / shares.sum() * draws).pvalue > 0.001


def test_a_seed_gives_the_same_draws_and_another_gives_others() -> None:
    def draws(seed: int | None) -> list[int]:
        pick = Sampling(temperature=2.0, seed=seed).start()
        return [pick(logits(step, 50)) for step in range(40)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert draws(None) != draws(None)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0), Sampling(temperature=0.0, top_p=0.5, seed=3)])
def test_no_temperature_takes_the_likeliest(sampling: Sampling) -> None:
    pick = sampling.start()
    for seed in range(20):
        assert pick(logits(seed, 300)) == logits(seed, 300).argmax()


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e300])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_extreme_temperatures(temperature: float, dtype: Any) -> None:
    scores = logits(1, 40).astype(dtype)
    scores[5] = -np.inf
    found = Sampling(temperature=temperature).probabilities(scores)
    assert found.sum() == pytest.approx(1)
    assert found[5] == 0
    assert (found > 0).sum() == (1 if temperature < 1 else 39)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_isnt_a_number_is_handed_on_to_be_refused(bad: float) -> None:
    scores = logits(1, 40)
    scores[7] = bad
    assert Sampling(temperature=1.0, seed=1).start()(scores) == 7


def test_forced_tokens_are_drawn() -> None:
    scores = np.full(20, -np.inf, np.float32)
    scores[4] = 0
    pick = Sampling(temperature=5.0, top_k=3, top_p=0.9, seed=1).start()
    assert {pick(scores) for _ in range(50)} == {4}


MISTAKES: dict[str, dict[str, Any]] = {
    "temperature is -1: expected 0": {"temperature": -1.0},
    "temperature is nan": {"temperature": float("nan")},
    "temperature is inf": {"temperature": float("inf")},
    "top_p is 0: expected 0 < top_p <= 1": {"temperature": 1.0, "top_p": 0.0},
    "top_p is 1.5: expected": {"temperature": 1.0, "top_p": 1.5},
    "top_k is -1: expected 0": {"temperature": 1.0, "top_k": -1},
    "seed is -1: expected 0": {"temperature": 1.0, "seed": -1},
    "top_p says how to draw": {"top_p": 0.5},
    "top_k says how to draw": {"top_k": 5},
    "seed says how to draw": {"seed": 0},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_wrong_values_are_one_line(message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        Sampling(**MISTAKES[message])
    assert "\n" not in str(caught.value)
