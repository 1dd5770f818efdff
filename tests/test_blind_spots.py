"""What a model is blind to must not choose tokens: a vector added to all keys of a layer changes no attention.

``q_i . (k_j + c) = q_i . k_j + q_i . c``, the same number for all j, which a softmax over j takes away. So features and
logits stay, and so must what a score keeps that is made of attention. In front of a decoder's rotation that isn't so:
it turns c for each j by another angle, and the model sees it; there c is added behind it.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir
import pytest
from one_picture import OF_ONE_PICTURE
from random_models import SHAPES, canonical
from towers import session

from lmmprune.models.trace import cache_names
from lmmprune.passes.find.anchors import find_decoder_anchors, find_vision_anchors
from lmmprune.passes.find.layers import Layer
from lmmprune.passes.methods import get_method
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
from lmmprune.passes.reduce.reduce_vision import ReduceVision
from lmmprune.passes.reduce.select_before_layers import select_before_layers
from lmmprune.passes.reduce.stage import Stage

SHAPE = SHAPES[3]
PREFIX, TAIL = 3, 6

LOOKS_AT_KEYS = {
    "tome": "its edges are cosines of keys, by the paper's design",
    "aim": "what it merges in front of the decoder are the tokens with the nearest keys, by the paper's design",
}
"""Methods whose kept tokens may move in the encoder. Others use keys only for what the kept tokens take in: prumerge's
neighbours, what joins visionzip's targets."""

IN_DECODER_BY_KEYS = {
    "dart": "its pivots are the longest keys, and it keeps the keys farthest from them, by the paper's design"
}
"""The same in the decoder."""


def disturbed(model: ir.Model, layers: tuple[Layer, ...]) -> ir.Model:
    """Add a vector as large as the keys are to all keys of each layer, as a bias of their projection would."""
    rng = np.random.default_rng(5)
    for index, layer in enumerate(layers):
        _, heads, width = layer.heads
        noise = ir.Value(
            name=f"noise.{index}", const_value=ir.tensor(rng.standard_normal((1, heads, 1, width), np.float32))
        )
        noise.shape, noise.type = ir.Shape([1, heads, 1, width]), ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(noise)
        node = ir.node("Add", [layer.k, noise], name=f"disturb.{index}")
        value = node.outputs[0]
        value.name, value.shape, value.type = f"disturbed.{index}", layer.k.shape, layer.k.type
        for user, place in list(layer.k.uses()):
            if user is not node:
                user.replace_input_with(place, value)
        model.graph.insert_after(layer.k.producer(), node)  # type: ignore[arg-type]  # keys are made by a node
    return model


@functools.cache
def towers() -> tuple[ir.Model, ir.Model]:
    plain = canonical(SHAPE)[0]
    other = plain.clone()
    return plain, disturbed(other, find_vision_anchors(other).layers)


@functools.cache
def decoders() -> tuple[ir.Model, ir.Model]:
    plain = canonical(SHAPE)[1]
    other = plain.clone()
    return plain, disturbed(other, find_decoder_anchors(other).layers)


def pixels() -> dict[str, np.ndarray]:
    shape = (SHAPE.batch, 3, SHAPE.grid * 4, SHAPE.grid * 4)
    return {"pixel_values": np.random.default_rng(6).standard_normal(shape).astype(np.float32)}


def prompt(tokens: int) -> dict[str, np.ndarray]:
    rng, length = np.random.default_rng(7), PREFIX + tokens + TAIL
    channels = SHAPE.heads * SHAPE.head_dim
    empty = np.zeros((1, SHAPE.kv_heads, 0, SHAPE.head_dim), np.float32)
    return {
        "input_ids": np.array([[5, 6, 7] + [3] * tokens + [8, 9, 10, 11, 12, 13]]),
        "position_ids": np.arange(length)[None],
        "image_features": rng.standard_normal((1, tokens, channels)).astype(np.float32),
        **{name: empty for pair in cache_names(SHAPE.llm_layers)[0] for name in pair},
    }


def planned(name: str, *, in_decoder: bool) -> tuple[Stage, ...]:
    """Return a method's stages in one of the graphs: those of half of the tokens."""
    stages = get_method(name).plan(SHAPE.facts, round(SHAPE.facts.tokens * 0.6))
    return tuple(stage for stage in stages if stage.site.in_decoder == in_decoder)


@functools.cache
def kept(name: str, which: int, *, in_decoder: bool) -> dict[str, np.ndarray]:
    """Return the kept places at each site, of the graph as it is (0) or with the other keys (1)."""
    stages = planned(name, in_decoder=in_decoder)
    if in_decoder:
        before = planned(name, in_decoder=False)
        tokens = min((stage.keep for stage in before), default=SHAPE.facts.tokens)
        model, given = decoders()[which].clone(), prompt(tokens)
        if stages and stages[0].site.before_layers:
            selection = select_before_layers(model, stages[0], method=name, image_tokens=tokens, prefix=PREFIX)
            assert selection is not None
            model, given = selection, {key: given[key] for key in ("input_ids", "image_features")}
        else:
            ReduceDecoder(method=name, stages=stages, image_tokens=tokens, prefix=PREFIX)(model)
    else:
        model, given = towers()[which].clone(), pixels()
        ReduceVision(method=name, stages=stages, grid=SHAPE.facts.grid)(model)
    found = session(model)(given)
    return {site: places for site, places in found.items() if site.startswith("kept_indices")}


def test_the_model_is_blind_to_it() -> None:
    for models, given in ((towers(), pixels()), (decoders(), prompt(9))):
        mine, theirs = (session(model)(given) for model in models)
        name = "image_features" if "pixel_values" in given else "logits"
        assert mine[name].std() > 0.1
        np.testing.assert_allclose(theirs[name], mine[name], atol=1e-4)
        assert (
            any(np.abs(theirs[key] - mine[key]).max() > 0.1 for key in mine if key.endswith(".key")) or name != "logits"
        )


IN_ENCODER = [name for name in sorted(OF_ONE_PICTURE) if planned(name, in_decoder=False)]
IN_DECODER = [name for name in sorted(OF_ONE_PICTURE) if planned(name, in_decoder=True)]


@pytest.mark.parametrize("name", IN_ENCODER)
def test_what_is_kept_in_the_encoder(name: str) -> None:
    mine, theirs = (kept(name, which, in_decoder=False) for which in (0, 1))
    same = all(np.array_equal(mine[site], theirs[site]) for site in mine)
    assert mine.keys() == theirs.keys()
    assert mine
    assert same == (name not in LOOKS_AT_KEYS), LOOKS_AT_KEYS.get(name, "its score sees what the model doesn't")


@pytest.mark.parametrize("name", IN_DECODER)
def test_what_is_kept_in_the_decoder(name: str) -> None:
    mine, theirs = (kept(name, which, in_decoder=True) for which in (0, 1))
    same = all(np.array_equal(mine[site], theirs[site]) for site in mine)
    assert mine.keys() == theirs.keys()
    assert mine
    assert same == (name not in IN_DECODER_BY_KEYS), IN_DECODER_BY_KEYS.get(
        name, "its score sees what the model doesn't"
    )


def test_every_method_is_looked_at() -> None:
    assert {*IN_ENCODER, *IN_DECODER} == set(OF_ONE_PICTURE)
    assert {*LOOKS_AT_KEYS} <= set(IN_ENCODER)
    assert {*IN_DECODER_BY_KEYS} <= set(IN_DECODER)
