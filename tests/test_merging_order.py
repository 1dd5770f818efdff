"""ToMe's list from layer to layer and AIM's from round to round, against NumPy over single entries.

The list of the next layer or round is what stayed of the half that gave, then the half that received.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cuts import prune_tower
from formulas import cosines, top
from towers import Tower, run

from lmmprune.passes.find.sites import vision_layer
from lmmprune.passes.methods import get_method
from lmmprune.passes.reduce.reduce_vision import ReduceVision


@dataclasses.dataclass
class Tokens:
    """One picture's tokens as a list: places in the picture, and how many patches each stands for."""

    places: list[int]
    sizes: list[float]

    def merge(self, keys: np.ndarray, keep: int, *, has_cls: bool) -> np.ndarray:
        """Merge until ``keep`` are left; return the means that make the new tokens of the old ones, ``[keep,n]``."""
        n = len(self.places)
        a, b = list(range(int(has_cls), n, 2)), list(range(1 - int(has_cls), n, 2))
        similarity = cosines(keys[a], keys[b])
        strongest = top(similarity.max(axis=1), len(a))
        going = strongest[: n - keep]
        staying = strongest[n - keep :]
        order = [a[i] for i in (sorted(staying) if has_cls else staying)] + b
        weights = np.zeros((keep, n))
        for row, token in enumerate(order):
            weights[row, token] = self.sizes[token]
        for i in going:
            weights[order.index(b[top(similarity[i], 1)[0]]), a[i]] = self.sizes[a[i]]
        self.places = [self.places[token] for token in order]
        self.sizes = weights.sum(axis=1).tolist()
        return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize(("patches", "keep", "batch"), [(30, 7, 1), (25, 9, 3), (16, 15, 1), (24, 3, 2)])
def test_tome_splits_the_list_that_the_layer_before_left(patches: int, keep: int, batch: int, has_cls: bool) -> None:
    tower = Tower(batch=batch, patches=patches, has_cls=has_cls, width=5, seed=patches)
    stages = {stage.site.layer: stage.keep for stage in get_method("tome").plan(tower.facts, keep)}
    assert max(stages) == tower.layers - 1
    lists = [Tokens(list(range(patches)), [1.0] * patches) for _ in range(batch)]
    means: dict[int, list[np.ndarray]] = {}
    biases: dict[int, np.ndarray] = {}

    def apply(layer: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        if layer not in means:
            return x, None
        merged = np.stack([mean @ tokens for mean, tokens in zip(means[layer], x[:, has_cls:], strict=True)])
        return np.concatenate([x[:, :has_cls], merged], axis=1), biases[layer]

    expected = {}
    for layer in range(tower.layers):
        keys = tower.forward(apply)[0][layer].k.mean(axis=1)[:, has_cls:]
        if layer in stages:
            means[layer] = [one.merge(k, stages[layer], has_cls=has_cls) for one, k in zip(lists, keys, strict=True)]
            biases[layer] = np.log([[1.0] * has_cls + one.sizes for one in lists])
            expected[layer] = [list(one.places) for one in lists]
    rasters = [np.argsort(one.places) for one in lists]
    expected[tower.layers - 1] = [sorted(one.places) for one in lists]
    features = tower.project(tower.forward(apply)[1][:, has_cls:])

    model = tower.graph()
    assert prune_tower(model, tower, "tome", keep)
    found = run(model, {"pixel_values": tower.inputs()})
    for layer, places in expected.items():
        name = f"kept_indices.{vision_layer(layer)}" if len(expected) > 1 else "kept_indices"
        assert found[name].tolist() == places, name
    assert found["kept_indices"].tolist() == expected[tower.layers - 1]
    in_order = np.stack([rows[raster] for rows, raster in zip(features, rasters, strict=True)])
    np.testing.assert_allclose(found["image_features"], in_order, rtol=1e-4, atol=1e-4)
    last = found[f"received.{vision_layer(tower.layers - 1)}"]
    assert last.sum() >= batch


@pytest.mark.parametrize("keep", [29, 15, 14, 6, 1])
def test_aim_splits_the_list_that_the_round_before_left(keep: int) -> None:
    tower = Tower(batch=2, patches=30, width=5, seed=3)
    x, keys = tower.hidden()[:, 1:], tower.forward()[0][-1].k.mean(axis=1)[:, 1:]
    places, tokens = [], []
    for rows, key in zip(x, keys, strict=True):
        left, rows, key = Tokens(list(range(30)), [1.0] * 30), rows, key
        while (n := len(left.places)) > keep:
            mean = left.merge(key, max(keep, n - n // 2), has_cls=False)
            rows, key = mean @ rows, mean @ key
        raster = np.argsort(left.places)
        places.append(sorted(left.places))
        tokens.append(rows[raster])
    stages = get_method("aim", {"steps": "0"}).plan(tower.facts, keep)
    model = tower.graph()
    ReduceVision(method="aim", stages=stages, grid=tower.grid)(model)
    found = run(model, {"pixel_values": tower.inputs()})
    assert found["kept_indices"].tolist() == places
    np.testing.assert_allclose(found["image_features"], tower.project(np.stack(tokens)), rtol=1e-4, atol=1e-4)
