"""SmoothQuant leaves the float32 function as it is, moves outliers into weights, and refuses what it can't smooth."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from random_models import SHAPES, Shape, canonical
from towers import session

from lmmprune.errors import GraphRefusal
from lmmprune.passes.find.blocks import find_blocks
from lmmprune.passes.int8.insert_qdq import InsertQdq
from lmmprune.passes.int8.smooth_quant import SmoothQuant, find_smoothable
from lmmprune.passes.lower.freeze_shapes import FreezeShapes
from lmmprune.passes.methods import get_method
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
from lmmprune.passes.reduce.reduce_vision import ReduceVision

TOLERANCE = 1e-5
METHODS = (None, "freepruner", "ficoco-v", "ficoco-l", "tome", "fastv")
IMAGE_TOKEN = 5


def pruned(shape: Shape, method: str | None) -> tuple[ir.Model, ir.Model, int]:
    """Return both graphs and the number of visual tokens that enter the decoder."""
    vision, decoder = (graph.clone() for graph in canonical(shape))
    tokens = shape.facts.tokens
    stages = get_method(method).stages_for(shape.facts, tokens * 3 // 4) if method else ()
    ReduceVision(method=method or "freepruner", stages=stages, grid=shape.facts.grid)(vision)
    entering = min((s.keep for s in stages if not s.site.in_decoder), default=tokens)
    FreezeShapes()(vision)
    ReduceDecoder(method=method or "freepruner", stages=stages, image_tokens=entering, prefix=1)(decoder)
    return vision, decoder, entering


def inputs(shape: Shape, decoder: ir.Model, tokens: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(shape.seed)
    pixels = rng.standard_normal((shape.batch, 3, shape.grid * 4, shape.grid * 4)).astype(np.float32)
    ids = np.array([[1, *[IMAGE_TOKEN] * tokens, 7, 8, 9, 10]], np.int64)
    width = int(next(v for v in decoder.graph.inputs if v.name == "image_features").shape[2])
    given = {
        "input_ids": ids,
        "position_ids": np.arange(ids.shape[1], dtype=np.int64)[None],
        "image_features": rng.standard_normal((1, tokens, width)).astype(np.float32),
    }
    empty = np.zeros((1, shape.kv_heads, 0, shape.head_dim), np.float32)
    given |= {str(v.name): empty for v in decoder.graph.inputs if str(v.name).startswith("past_key_values")}
    return {"pixel_values": pixels}, given


def factors(model: ir.Model, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = {str(group.value.name): int(group.readers[0].inputs[1].shape[0]) for group in find_smoothable(model)}
    return {name: np.exp(rng.uniform(-2, 2, size)).astype(np.float32) for name, size in sizes.items()}


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("shape", SHAPES[:6:2], ids=lambda shape: f"shape{shape.seed}")
def test_the_function_stays(shape: Shape, method: str | None) -> None:
    vision, decoder, tokens = pruned(shape, method)
    given = inputs(shape, decoder, tokens)
    for model, feeds in zip((vision, decoder), given, strict=True):
        before = session(model)(feeds)
        nodes = len(list(model.graph))
        chosen = factors(model, shape.seed)
        assert chosen, "nothing to smooth"
        SmoothQuant(factors=chosen)(model)
        assert len(list(model.graph)) == nodes
        after = session(model)(feeds)
        for name, expected in before.items():
            if expected.dtype == np.int64:
                np.testing.assert_array_equal(after[name], expected, err_msg=name)
            else:
                scale = max(1.0, float(np.abs(expected).max()))
                np.testing.assert_allclose(after[name], expected, rtol=0, atol=TOLERANCE * scale, err_msg=name)


def test_norms_are_found() -> None:
    vision, decoder, _ = pruned(SHAPES[0], None)
    layers = SHAPES[0].llm_layers
    kinds = [group.made_by.op_type for group in find_smoothable(decoder)]
    assert kinds == ["RMSNormalization"] * 2 * layers
    assert {group.made_by.op_type for group in find_smoothable(vision)} == {"LayerNormalization"}
    blocks = find_blocks(decoder)
    roles = {blocks[reader].role for group in find_smoothable(decoder) for reader in group.readers}
    assert roles == {"qkv", "up"}


def test_an_outlier_channel_no_longer_sets_the_range() -> None:
    """One channel a hundred times as large: the range shrinks by what the formula says, and INT8 errs less."""
    _, decoder, tokens = pruned(SHAPES[0], None)
    _, feeds = inputs(SHAPES[0], decoder, tokens)
    group = find_smoothable(decoder)[0]
    gain = group.made_by.inputs[1]
    loud = gain.const_value.numpy().copy()
    loud[0] *= 100
    gain.const_value = ir.Tensor(loud, name=gain.name)
    name = str(group.value.name)
    exact = session(decoder)(feeds)["logits"]

    def watched(model: ir.Model) -> dict[str, np.ndarray]:
        copy = model.clone()
        values = {o.name: o for n in copy.graph for o in n.outputs}
        names = [n for n in sorted(wanted) if not values[n].is_graph_output()]
        copy.graph.outputs.extend(values[n] for n in names)
        return session(copy)(feeds)

    def error(model: ir.Model) -> float:
        found = watched(model)
        ranges = {n: (float(found[n].min()), float(found[n].max())) for n in wanted}
        quantized = model.clone()
        InsertQdq(scheme="s8s8", ranges=ranges)(quantized)
        return float(np.linalg.norm(session(quantized)(feeds)["logits"] - exact))

    from lmmprune.passes.int8.insert_qdq import activations

    wanted = set(activations(decoder, "s8s8"))
    maxima = np.abs(watched(decoder)[name]).max(axis=(0, 1))
    weights = np.concatenate([np.abs(r.inputs[1].const_value.numpy()) for r in group.readers], axis=1).max(axis=1)
    factor = np.sqrt(maxima / weights).astype(np.float32)
    smooth = decoder.clone()
    SmoothQuant(factors={name: factor})(smooth)
    np.testing.assert_allclose(
        np.abs(watched(smooth)[name]).max(), (maxima / factor).max(), rtol=1e-4, err_msg="eq. 3: X diag(s)^-1"
    )
    assert (maxima / factor).max() < maxima.max() / 3
    assert error(smooth) < error(decoder)


def test_refusals() -> None:
    _, decoder, _ = pruned(SHAPES[0], None)
    good = factors(decoder, 0)
    name = next(iter(good))
    with pytest.raises(GraphRefusal, match="'logits' can't be smoothed"):
        SmoothQuant(factors={"logits": np.ones(4, np.float32)})(decoder)
    with pytest.raises(GraphRefusal, match=f"'{name}' must be"):
        SmoothQuant(factors={name: -good[name]})(decoder)
    with pytest.raises(GraphRefusal, match="found shape"):
        SmoothQuant(factors={name: good[name][:-1]})(decoder)
    SmoothQuant(factors={name: good[name]})(decoder)
    with pytest.raises(GraphRefusal, match=f"'{name}' can't be smoothed"):
        SmoothQuant(factors={name: good[name]})(decoder)
