"""Cuts in the vision graph: places and tokens equal the formulas' and NumPy's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from cuts import cut_tower, picking, prune_tower
from formulas import FORMULAS, pictures
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from towers import Tower, run

from lmmprune.errors import GraphRefusal, InputError
from lmmprune.passes.find.sites import PROJECTOR_OUTPUT, VISION_OUTPUT, Site, llm_input, vision_layer
from lmmprune.passes.methods import METHODS, get_method
from lmmprune.passes.reduce.filters import constant_places
from lmmprune.passes.reduce.reduce_vision import ReduceVision
from lmmprune.passes.reduce.rules import Merge, Outcome, ReductionRule
from lmmprune.passes.reduce.site_context import SiteContext
from lmmprune.passes.reduce.stage import Stage

towers = st.builds(
    Tower,
    batch=st.integers(1, 4),
    patches=st.integers(4, 30),
    has_cls=st.booleans(),
    heads=st.integers(1, 3),
    width=st.sampled_from([1, 3, 4, 5, 8]),
    layers=st.integers(2, 4),
    seed=st.integers(0, 10_000),
)
# Shrinking costs minutes of graph building and the configuration is small as it is.
deterministic = settings(deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])

COSINES = {"divprune", "dpp", "scope", "visionzip", "vispruner", "prumerge", "prumerge+"}


@settings(deterministic, max_examples=240)
@given(
    tower=towers,
    ratio=st.floats(0.05, 0.95),
    name=st.sampled_from(sorted(FORMULAS)),
    fraction=st.floats(0.1, 1),
)
def test_places_and_features_equal_the_formula(tower: Tower, ratio: float, name: str, fraction: float) -> None:
    method = METHODS[name]
    keep = max(1, tower.patches - round(ratio * tower.patches))
    # In one dimension every cosine is 1 or -1, and rounding alone decides.
    width = max(tower.width, 3) if name in COSINES else tower.width
    tower = dataclasses.replace(tower, width=width, next_layer=method.next_layer)
    if method.needs_cls and not tower.has_cls:
        with pytest.raises(GraphRefusal, match="needs a CLS token"):
            prune_tower(tower.graph(), tower, name, 1)
        return
    if method.next_layer and keep < 2:
        with pytest.raises(InputError, match="keep 2 or more"):
            prune_tower(tower.graph(), tower, name, keep)
        return
    options = {key: str(fraction) for key in method().parameters if key.endswith("_fraction")}
    model = tower.graph()
    assert prune_tower(model, tower, name, keep, **options) == (keep < tower.patches or method.next_layer)
    found = run(model, {"pixel_values": tower.inputs()})
    assert "next_layer_features" not in found
    if keep == tower.patches:
        assert "kept_indices" not in found
        return
    assert found["kept_indices"].dtype == np.int64
    for index, picture in enumerate(pictures(tower)):
        places, tokens = FORMULAS[name](picture, keep, get_method(name, options))
        assert found["kept_indices"][index].tolist() == places
        expected = picture.features[places] if tokens is None else tower.project(tokens)
        np.testing.assert_allclose(found["image_features"][index], expected, rtol=1e-4, atol=1e-4)


def merging(kept: Sequence[int], weights: np.ndarray, *, mean: bool, sizes: np.ndarray | None) -> ReductionRule:
    def rule(at: SiteContext, keep: int) -> Outcome:
        dropped = np.setdiff1d(np.arange(at.tokens), kept)

        def everywhere(array: np.ndarray) -> ir.Value:
            return at.b.constant(np.broadcast_to(array.astype(np.float32), (at.batch, *array.shape)).copy())

        merge = Merge(weights=everywhere(weights), dropped=constant_places(at, dropped), mean=mean)
        return Outcome(
            kept=constant_places(at, np.array(kept)),
            merge=merge,
            sizes=None if sizes is None else everywhere(sizes),
            ordered=True,
        )

    return rule


@settings(deterministic, max_examples=60)
@given(tower=towers, seed=st.integers(0, 10_000), data=st.data())
def test_cuts_anywhere_equal_numpy(tower: Tower, seed: int, data: st.DataObject) -> None:
    """Any chain of sites; inside the encoder tokens are merged, with or without sizes, behind it they are dropped."""
    rng = np.random.default_rng(seed)
    every = [*map(vision_layer, range(tower.layers)), VISION_OUTPUT, PROJECTOR_OUTPUT]
    sites = data.draw(st.lists(st.sampled_from(every), unique=True, min_size=1).map(lambda s: sorted(s, key=_depth)))
    sized = data.draw(st.booleans())
    counts = sorted((int(rng.integers(1, tower.patches)) for _ in sites), reverse=True)
    stages, plan, tokens = [], {}, tower.patches
    origin: dict[Site, np.ndarray] = {}
    places = np.arange(tower.patches)
    for site, keep in zip(sites, counts, strict=True):
        kept = np.sort(rng.permutation(tokens)[:keep])
        weights = rng.uniform(0.1, 1, (keep, tokens - keep)) * rng.integers(0, 2, (keep, 1))
        sizes = rng.uniform(1, 4, keep) if sized else None
        mean = bool(rng.integers(2))
        inside = site.kind == "vision_layer"
        rule = merging(kept, weights, mean=mean, sizes=sizes) if inside else picking(kept[rng.permutation(keep)])
        stages.append(Stage(site=site, keep=keep, rule=rule))
        plan[site] = (kept, weights, mean, sizes)
        if keep < tokens:
            places = places[kept]
            origin[site] = places
        tokens = keep

    def apply(layer: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        site = vision_layer(layer)
        if site not in origin:
            return x, None
        kept, weights, mean, sizes = plan[site]
        lead, visual = x[:, : tower.has_cls], x[:, tower.has_cls :]
        dropped = np.setdiff1d(np.arange(visual.shape[1]), kept)
        new = visual[:, kept] + np.einsum("ks,bsc->bkc", weights, visual[:, dropped])
        new = new / (1 + weights.sum(axis=1))[:, None] if mean else new
        bias = None if sizes is None else np.log(np.concatenate([np.ones(int(tower.has_cls)), sizes]))
        return np.concatenate([lead, new], axis=1), bias if bias is None else np.tile(bias, (tower.batch, 1))

    tokens_out = tower.forward(apply)[1][:, tower.has_cls :]
    for site in (VISION_OUTPUT, PROJECTOR_OUTPUT):
        tokens_out = tokens_out[:, plan[site][0]] if site in origin else tokens_out
    rng.shuffle(stages)  # type: ignore[arg-type]  # they may come in any order
    found = run(cut_tower(tower.graph(), tower, *stages), {"pixel_values": tower.inputs()})
    np.testing.assert_allclose(found["image_features"], tower.project(tokens_out), rtol=1e-4, atol=1e-4)
    outputs = {f"kept_indices.{site}": array for site, array in origin.items()} if len(origin) > 1 else {}
    outputs |= {"kept_indices": places} if origin else {}
    for site in origin:
        if site.kind == "vision_layer":
            outputs[f"received.{site}"] = (plan[site][1] > 0).any(axis=1).astype(int)
    assert set(found) == {"image_features", *outputs}
    for name, array in outputs.items():
        assert found[name].tolist() == [array.tolist()] * tower.batch, name


def _depth(site: Site) -> tuple[int, int, bool]:
    return site.depth


def test_a_token_without_a_place_keeps_none_behind_a_later_cut() -> None:
    tower = Tower()

    def summed(at: SiteContext, keep: int) -> Outcome:
        places = np.array([5, -1, 2])
        rows = at.gather(at.visual, constant_places(at, np.array([5, 0, 2])), keep)
        return Outcome(kept=constant_places(at, places), tokens=rows, ordered=True)

    model = cut_tower(
        tower.graph(),
        tower,
        Stage(site=VISION_OUTPUT, keep=3, rule=summed),
        Stage(site=PROJECTOR_OUTPUT, keep=2, rule=picking([1, 2])),
    )
    found = run(model, {"pixel_values": tower.inputs()})
    assert found["kept_indices.vision_output"].tolist() == [[5, -1, 2]]
    assert found["kept_indices"].tolist() == [[-1, 2]]
    np.testing.assert_allclose(found["image_features"], tower.features()[:, [0, 2]], rtol=1e-4, atol=1e-4)


def test_nothing_removed_is_the_same_graph() -> None:
    tower = Tower()
    before = ir.serde.serialize_model(tower.graph()).SerializeToString()
    for name in METHODS:
        model = tower.graph()
        assert not prune_tower(model, tower, name, 12)
        assert ir.serde.serialize_model(model).SerializeToString() == before
    model = tower.graph()
    # Nor do stages that keep everything write anything, nor those that belong to the decoder.
    every = [vision_layer(0), VISION_OUTPUT, PROJECTOR_OUTPUT]
    idle = [Stage(site=site, keep=12, rule=picking(range(12))) for site in every]
    stages = [*idle, Stage(site=llm_input(1), keep=3, rule=picking([0, 1, 2]))]
    assert not ReduceVision(method="test", stages=stages, grid=tower.grid)(model).modified
    assert ir.serde.serialize_model(model).SerializeToString() == before


def test_ties_go_to_the_lower_index() -> None:
    tower = Tower(patches=10)
    model = tower.graph()
    # Without queries every logit is zero and every score ties.
    model.graph.initializers["q2"].const_value = ir.Tensor(np.zeros((8, 8), np.float32), name="q2")
    prune_tower(model, tower, "cls", 4)
    assert run(model, {"pixel_values": tower.inputs()})["kept_indices"].tolist() == [[0, 1, 2, 3]]
