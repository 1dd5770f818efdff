"""Estimates of a study against oracles that resample question by question, without matrices."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable

import numpy as np
import pytest

from lmmprune.compiler.measure import statistics as ours
from lmmprune.compiler.measure.statistics import (
    Estimate,
    estimate,
    resample_means,
    retention,
    speed_interaction,
    speedup,
)

CORRECT = np.random.default_rng(0).random((4, 60)) < np.array([[0.9], [0.8], [0.85], [0.7]])
PICTURES = [f"picture {index % 12}" for index in range(60)]


def clustered(draw: Callable[[np.random.Generator], float], repeats: int = 3000) -> tuple[float, float]:
    generator = np.random.default_rng(17)
    values = [draw(generator) for _ in range(repeats)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def accuracies(generator: np.random.Generator) -> list[float]:
    """Draw pictures one by one and count every question of each."""
    names = sorted(set(PICTURES))
    drawn = [names[generator.integers(len(names))] for _ in names]
    chosen = [index for name in drawn for index, picture in enumerate(PICTURES) if picture == name]
    return [float(np.mean([row[index] for index in chosen])) for row in CORRECT]


def test_intervals_equal_a_bootstrap_written_out() -> None:
    draws = resample_means(CORRECT, PICTURES)
    base, prune, int8, both = draws.T
    interaction = estimate(0.0, (both - prune) - (int8 - base))
    low, high = clustered(lambda g: (lambda b, p, q, c: (c - p) - (q - b))(*accuracies(g)))
    # Two Monte-Carlo errors: 10,000 and 3,000 draws.
    assert (interaction.low, interaction.high) == pytest.approx((low, high), abs=0.015)
    kept = retention(0.5, 1.0, prune, base)
    assert kept is not None
    low, high = clustered(lambda g: (lambda b, p, *_: p / b)(*accuracies(g)))
    assert (kept.low, kept.high) == pytest.approx((low, high), abs=0.015)


def test_every_resample_of_two_pictures() -> None:
    # Two pictures can be drawn in four ways: (a,a), (a,b), (b,a), (b,b), each as likely.
    correct = np.array([[1, 1, 0], [0, 1, 1]], bool)
    pictures = ["a", "a", "b"]
    draws = resample_means(correct, pictures)
    expected = {"aa": (1.0, 0.5), "ab": (2 / 3, 2 / 3), "bb": (0.0, 1.0)}
    shares = {"aa": 0.25, "ab": 0.5, "bb": 0.25}
    for way, pair in expected.items():
        assert np.isclose(draws, pair).all(axis=1).mean() == pytest.approx(shares[way], abs=0.02)


def test_resamples_are_the_same_every_time_and_whatever_the_other_cells() -> None:
    both = resample_means(CORRECT, PICTURES)
    assert (both == resample_means(CORRECT, PICTURES)).all()
    assert both[:, :1] == pytest.approx(resample_means(CORRECT[:1], PICTURES))


def test_clusters_widen_the_interval() -> None:
    # Answers that are equal within a picture: 12 pictures know no more than 12 questions.
    alike = np.repeat(np.random.default_rng(1).random((1, 12)) < 0.5, 5, axis=1)
    pictures = [str(index // 5) for index in range(60)]
    together = estimate(0.5, resample_means(alike, pictures)[:, 0])
    apart = estimate(0.5, resample_means(alike, [str(index) for index in range(60)])[:, 0])
    ratio = (together.high - together.low) / (apart.high - apart.low)
    assert ratio == pytest.approx(5**0.5, rel=0.15)


def test_pairing_narrows_the_interval() -> None:
    # The same model twice: nothing is uncertain about the difference, much about each.
    draws = resample_means(np.stack([CORRECT[1], CORRECT[1]]), PICTURES)
    assert estimate(0.0, draws[:, 0] - draws[:, 1]) == Estimate(value=0.0, low=0.0, high=0.0)


def test_coverage_of_the_truth() -> None:
    # Of 200 studies of 40 pictures with a known accuracy, 95 % of the intervals shall hold it; few pictures, so less.
    generator = np.random.default_rng(8)
    hits = 0
    for _ in range(200):
        difficulty = np.repeat(generator.normal(0, 0.1, 40), 4)
        right = generator.random((1, 160)) < 0.7 + difficulty
        found = estimate(0.0, _few(right, [str(index // 4) for index in range(160)]))
        hits += found.contains(0.7)
    assert 0.88 <= hits / 200 <= 0.985


def _few(correct: np.ndarray, pictures: list[str]) -> np.ndarray:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, "RESAMPLES", 500)
        return resample_means(correct, pictures)[:, 0]


@pytest.mark.parametrize("base", [[0, 0, 0, 0], [1, 0, 0, 0]])
def test_no_retention_of_nothing(base: list[int]) -> None:
    correct = np.array([base, [1, 1, 1, 1]], bool)
    draws = resample_means(correct, list("abcd"))
    assert retention(1.0, sum(base) / 4, draws[:, 1], draws[:, 0]) is None


def test_speed_interaction_against_all_resamples() -> None:
    base, prune, int8, both = [10.0, 12.0, 11.0], [5.0, 7.0, 5.0], [8.0, 9.0, 10.0], [4.0, 4.5, 5.5]
    found = speed_interaction(base, prune, int8, both)

    def value(rounds: tuple[int, ...]) -> float:
        fast = [statistics.median(base[r] / times[r] for r in rounds) for times in (prune, int8, both)]
        return fast[2] / (fast[0] * fast[1])

    every = [value(rounds) for rounds in itertools.product(range(3), repeat=3)]
    low, high = np.quantile(every, [0.025, 0.975])
    assert found.value == pytest.approx(value((0, 1, 2)))
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.02)


def test_speed_multiplies_exactly() -> None:
    base = [10.0, 30.0, 10.0, 20.0]  # the machine was busy in two rounds
    found = speed_interaction(base, [b / 2 for b in base], [b / 3 for b in base], [b / 6 for b in base])
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))
    assert speedup(base, [b / 2 for b in base]).value == pytest.approx(2.0)


def test_ends_belong_to_the_interval() -> None:
    assert Estimate(value=1, low=0, high=2).contains(0)
    assert not Estimate(value=1, low=0.1, high=2).contains(0)
    # Four shares of 80 questions whose interaction is nothing, but not in binary.
    rounding = (79 / 80 - 77 / 80) - (3 / 80 - 1 / 80)
    assert rounding != 0
    nothing = Estimate(value=rounding, low=rounding, high=rounding)
    assert nothing.contains(0)
    assert not nothing.above(0)
    assert not nothing.below(0)


def test_pictures_are_drawn_within_what_they_belong_to() -> None:
    # Two of each; the values of a stratum are all alike, so that no draw can change its mean.
    values = np.array([[1.0, 1.0, 0.0, 0.0]])
    pictures, strata = ["a", "b", "c", "d"], ["x", "x", "y", "y"]
    assert np.ptp(resample_means(values, pictures)) == 1
    assert np.ptp(resample_means(values, pictures, strata)) == 0
    assert (resample_means(values, pictures, ["x"] * 4) == resample_means(values, pictures)).all(), "one is none"
