"""Tokens of several patches: whose patches they are, what methods choose, and what can't be cut."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from cuts import cut_tower, picking, prune_tower
from formulas import FORMULAS, pictures
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from towers import Tower, run

from lmmprune.errors import GraphRefusal
from lmmprune.passes.find.anchors import find_vision_anchors
from lmmprune.passes.find.groups import trace_groups
from lmmprune.passes.find.sites import PROJECTOR_OUTPUT, VISION_OUTPUT, vision_layer
from lmmprune.passes.methods import METHODS, get_method
from lmmprune.passes.reduce.stage import Stage

SQUARES = Tower(patches=24, merge=2)
towers = st.builds(
    lambda visual, merge, **sizes: Tower(patches=visual * merge**2, merge=merge, **sizes),
    visual=st.integers(4, 9),
    merge=st.integers(2, 3),
    batch=st.integers(1, 3),
    has_cls=st.booleans(),
    heads=st.integers(1, 3),
    width=st.sampled_from([3, 4, 8]),
    layers=st.integers(2, 3),
    seed=st.integers(0, 10_000),
)


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("merge", [2, 3])
def test_the_patches_of_each_token_are_found(has_cls: bool, merge: int) -> None:
    tower = Tower(patches=6 * merge**2, merge=merge, has_cls=has_cls, batch=2)
    anchors = find_vision_anchors(tower.graph())
    assert anchors.members is not None
    assert (anchors.tokens, anchors.has_cls) == (6, has_cls)
    assert anchors.members.tolist() == tower.members
    assert anchors.hidden.name == f"hidden{tower.layers - 1}"
    assert find_vision_anchors(Tower(has_cls=has_cls).graph()).members is None


def test_tokens_in_another_order_are_followed() -> None:
    """As behind window attention: squares in any order."""
    order = [3, 0, 5, 1, 4, 2]
    model = SQUARES.graph()
    node = next(node for node in model.graph if node.outputs[0].name == "image_features")
    shuffled = node.inputs[0]
    assert shuffled is not None
    places = ir.Value(name="order", const_value=ir.Tensor(np.array(order, np.int64)))
    gather = ir.Node("", "Gather", [shuffled, places], [ir.AttrInt64("axis", 1)])
    gather.outputs[0].shape = shuffled.shape
    hidden, members = trace_groups(gather.outputs[0])
    assert hidden.name == "hidden2"
    assert (members - SQUARES.has_cls).tolist() == [SQUARES.members[place] for place in order]


@pytest.mark.parametrize("shape", [[1, 12, 16], [1, 3, 64], [1, 48, 4]])
def test_rows_that_are_torn_apart_are_refused(shape: list[int]) -> None:
    """Halves of rows, or halves of rows side by side, are no tokens."""
    tower = Tower(patches=24, merge=1, has_cls=False)
    model = tower.graph()
    hidden = next(value for node in model.graph for value in node.outputs if value.name == "hidden2")
    target = [1, 24, 2, 4]

    def constant(data: list[int]) -> ir.Value:
        return ir.Value(name="constant", const_value=ir.Tensor(np.array(data, np.int64)))

    halves = ir.Node("", "Reshape", [hidden, constant(target)])
    halves.outputs[0].shape = ir.Shape(target)
    turned = ir.Node("", "Transpose", [halves.outputs[0]], [ir.AttrInt64s("perm", [0, 2, 1, 3])])
    turned.outputs[0].shape = ir.Shape([1, 2, 24, 4])
    tokens = ir.Node("", "Reshape", [turned.outputs[0], constant(shape)])
    tokens.outputs[0].shape = ir.Shape(shape)
    with pytest.raises(GraphRefusal, match="isn't made of whole rows of 'hidden2'"):
        trace_groups(tokens.outputs[0])


@settings(deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate], max_examples=110)
@given(
    tower=towers,
    ratio=st.floats(0.05, 0.9),
    name=st.sampled_from(sorted(FORMULAS)),
    fraction=st.floats(0.1, 1),
)
def test_places_and_features_equal_the_formula(tower: Tower, ratio: float, name: str, fraction: float) -> None:
    method = METHODS[name]
    keep = min(tower.visual - 1, max(1 + method.next_layer, tower.visual - round(ratio * tower.visual)))
    tower = dataclasses.replace(tower, has_cls=tower.has_cls or method.needs_cls, next_layer=method.next_layer)
    options = {key: str(fraction) for key in method().parameters if key.endswith("_fraction")}
    model = tower.graph()
    assert prune_tower(model, tower, name, keep, **options)
    found = run(model, {"pixel_values": tower.inputs()})
    for index, picture in enumerate(pictures(tower)):
        places, tokens = FORMULAS[name](picture, keep, get_method(name, options))
        assert found["kept_indices"][index].tolist() == places
        expected = picture.features[places] if tokens is None else tower.project(tokens)
        np.testing.assert_allclose(found["image_features"][index], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sites", [[VISION_OUTPUT], [PROJECTOR_OUTPUT], [VISION_OUTPUT, PROJECTOR_OUTPUT]])
def test_whole_tokens_are_cut(sites: list) -> None:
    kept = [[5, 0, 2, 3], [3, 1]]
    stages = [Stage(site=site, keep=len(rows), rule=picking(rows)) for site, rows in zip(sites, kept, strict=False)]
    found = run(cut_tower(SQUARES.graph(), SQUARES, *stages), {"pixel_values": SQUARES.inputs()})
    places = [0, 2, 3, 5] if len(sites) == 1 else [2, 5]
    assert found["kept_indices"].tolist() == [places]
    np.testing.assert_allclose(found["image_features"], SQUARES.features()[:, places], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["tome", "ficoco-v", "ficoco-vl"])
def test_a_cut_inside_the_encoder_is_refused(name: str) -> None:
    with pytest.raises(GraphRefusal, match=f"'{name}' cuts inside the encoder.* each token of 2 x 2 patches"):
        get_method(name).plan(SQUARES.facts, 4)
    with pytest.raises(GraphRefusal, match="no site 'vision_layer_1': the graph makes each token of 4 patches"):
        cut_tower(SQUARES.graph(), SQUARES, Stage(site=vision_layer(1), keep=3, rule=picking([0, 1, 2])))


def test_a_layer_behind_the_last_is_refused() -> None:
    with pytest.raises(GraphRefusal, match="reads the encoder layer behind the features"):
        get_method("prumerge").plan(dataclasses.replace(SQUARES.facts, has_next_layer=False), 4)
