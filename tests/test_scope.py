"""SCOPE: what it adds is what the chosen don't cover yet, weighed by attention; hyper-parameter and ties."""

from __future__ import annotations

import numpy as np
import pytest
from cuts import prune_tower
from formulas import Picture, pictures
from towers import Tower, run

from lmmprune.errors import InputError
from lmmprune.passes.methods import METHODS


def chosen(picture: Picture, keep: int, alpha: float) -> list[int]:
    """Return the places in ascending order; each gain is the difference of two coverages."""
    unit = picture.x / np.linalg.norm(picture.x, axis=1, keepdims=True)
    attention = picture.attention[-1].mean(axis=0)
    given = attention[0] if picture.first else attention.sum(axis=0) - attention.diagonal()
    weights = picture.pooled(given) ** alpha

    def coverage(places: list[int]) -> float:
        return float(np.maximum(unit @ unit[places].T, 0).max(axis=1).sum()) if places else 0.0

    kept: list[int] = []
    for _ in range(keep):
        left = [place for place in range(len(unit)) if place not in kept]
        kept.append(max(left, key=lambda place: weights[place] * (coverage([*kept, place]) - coverage(kept))))
    return sorted(kept)


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_each_step_adds_the_most_coverage(has_cls: bool, merge: int, alpha: float) -> None:
    tower = Tower(batch=2, patches=48, has_cls=has_cls, merge=merge, seed=3)
    for keep in (1, 4, tower.visual - 1):
        model = tower.graph()
        assert prune_tower(model, tower, "scope", keep, alpha=str(alpha))
        found = run(model, {"pixel_values": tower.inputs()})["kept_indices"]
        assert found.tolist() == [chosen(picture, keep, alpha) for picture in pictures(tower)]


def test_patches_that_are_all_alike_are_kept_once_each() -> None:
    # Behind the first one nothing is left to cover: every gain is zero but for rounding.
    tower = Tower(patches=9, layers=2)
    model = tower.graph()
    prune_tower(model, tower, "scope", 5)
    same = np.broadcast_to(tower.inputs()[:, 1:2], tower.inputs().shape).copy()
    found = run(model, {"pixel_values": same})["kept_indices"][0].tolist()
    assert found == sorted(set(found))
    assert len(found) == 5


def test_the_power_is_positive() -> None:
    with pytest.raises(InputError, match="alpha=0: expected more than 0"):
        METHODS["scope"](alpha=0.0).plan(Tower().facts, 4)
