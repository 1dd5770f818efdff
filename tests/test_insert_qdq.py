"""Q/DQ: scales and integers against NumPy, placement, numerics, refusals."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from decoders import IMAGE, SmallDecoder, feeds
from hypothesis import given, settings
from hypothesis import strategies as st
from towers import Tower, run

from lmmprune.errors import GraphRefusal, InputError
from lmmprune.passes.int8.insert_qdq import InsertQdq, activations
from lmmprune.passes.int8.int8 import quantization, weight_scales
from lmmprune.passes.lower.cast_float import CastFloat
from lmmprune.passes.methods import get_method
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
from lmmprune.passes.reduce.reduce_vision import ReduceVision


def freeprune(model: ir.Model, tower: Tower, keep: int) -> None:
    stages = get_method("freepruner").stages(tower.facts, keep)
    ReduceVision(method="freepruner", stages=stages, grid=tower.grid)(model)


def ranges(model: ir.Model, scheme: str, tower: Tower) -> dict[str, tuple[float, float]]:
    return calibrated(model, scheme, {"pixel_values": tower.inputs()})


def calibrated(model: ir.Model, scheme: str, given: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Calibrate on one input by running the graph with every watched value as an output."""
    names = activations(model, scheme)
    values = {v.name: v for v in model.graph.inputs} | {o.name: o for n in model.graph for o in n.outputs}
    watched = [name for name in names if not values[name].is_graph_input() and not values[name].is_graph_output()]
    outputs = list(model.graph.outputs)
    model.graph.outputs.extend(values[name] for name in watched)
    found = run(model, given) | given
    model.graph.outputs.clear()
    model.graph.outputs.extend(outputs)
    return {name: (float(found[name].min()), float(found[name].max())) for name in names}


@pytest.mark.parametrize("scheme", ["u8s8", "s8s8"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_weight_becomes_int8_and_the_answer_stays_close(scheme: str, dtype: str) -> None:
    tower = Tower(patches=16, heads=4, width=8)
    model = tower.graph()
    freeprune(model, tower, 6)
    exact = run(model, {"pixel_values": tower.inputs()})
    InsertQdq(scheme=scheme, ranges=ranges(model, scheme, tower), dtype=dtype)(model)
    weights = [v for v in model.graph.initializers.values() if v.name and v.name.endswith("/int8")]
    assert len(weights) == 5 * tower.layers + 1
    assert all(v.dtype == ir.DataType.INT8 for v in weights)
    feeds = {"pixel_values": tower.inputs()}
    if dtype == "float16":
        CastFloat(dtype=dtype)(model)
        feeds = {"pixel_values": tower.inputs().astype(np.float16)}
    found = run(model, feeds)
    a, b = found["image_features"].astype(np.float32).ravel(), exact["image_features"].ravel()
    if found["kept_indices"].tolist() == exact["kept_indices"].tolist():
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.999
        assert not np.array_equal(a, b), "nothing was quantized"
    else:
        pytest.fail("this seed has no near-ties: the kept sets must agree")


def test_q_k_and_v_share_one_scale_and_scores_stay_float() -> None:
    tower = Tower()
    model = tower.graph()
    freeprune(model, tower, 4)
    scores = sum(node.op_type == "MatMul" and "lmmprune" in str(node.name) for node in model.graph)
    InsertQdq(scheme="s8s8", ranges=ranges(model, "s8s8", tower))(model)
    sources = {str(node.name): node.inputs[0] for node in model.graph if node.op_type == "MatMul"}
    assert sources["q_proj1"] is sources["k_proj1"] is sources["v_proj1"]
    float_matmuls = [
        node
        for node in model.graph
        if node.op_type == "MatMul" and not str(node.inputs[0].name).endswith("dequantized")
    ]
    assert scores > 0
    assert len(float_matmuls) == scores


@pytest.mark.parametrize("name", ["fastv", "ficoco-l", "pyramiddrop"])
def test_a_decoder_with_cuts_is_quantized_but_for_its_scores(name: str) -> None:
    decoder, tokens = SmallDecoder(layers=4, heads=4, kv_heads=2, width=8), 10
    model = decoder.graph()
    stages = get_method(name).plan(decoder.facts(tokens), 6)
    ReduceDecoder(method=name, stages=stages, image_tokens=tokens, prefix=1)(model)
    ids = [5, *[IMAGE] * tokens, 7, 8, 9]
    given = feeds(decoder, ids, np.arange(len(ids)), decoder.features(tokens), decoder.no_cache())
    given = {key: array if array.dtype == np.int64 else array.astype(np.float32) for key, array in given.items()}
    exact = run(model, given)
    InsertQdq(scheme="s8s8", ranges=calibrated(model, "s8s8", given))(model)
    for node in model.graph:
        if node.op_type == "MatMul":
            quantized = str(node.inputs[0].name).endswith("dequantized")  # type: ignore[union-attr]  # it has inputs
            assert quantized != str(node.name).startswith("lmmprune/"), node.name
    found = run(model, given)
    a, b = found["logits"].ravel(), exact["logits"].ravel()
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99
    assert not np.array_equal(a, b), "nothing was quantized"
    assert [found[f"present.{layer}.key"].shape for layer in range(4)] == [
        exact[f"present.{layer}.key"].shape for layer in range(4)
    ]


@settings(max_examples=100, deadline=None)
@given(low=st.floats(-1e4, 1e4), span=st.floats(0, 1e4), symmetric=st.booleans())
def test_zero_is_exact_and_the_ends_are_reached(low: float, span: float, symmetric: bool) -> None:
    high = low + span
    scale, zero = quantization((low, high), symmetric=symmetric)
    assert scale > 0
    lowest, highest = (-127, 127) if symmetric else (0, 255)
    assert lowest <= zero <= highest
    assert zero == 0 or not symmetric
    for value in (low, high, 0.0):
        back = (np.clip(round(value / scale) + zero, lowest, highest) - zero) * scale
        # Rounding the zero point may move an end by another half step.
        assert abs(back - value) <= scale * 1.0001 * (0.5 if symmetric else 1.0) + abs(value) * 1e-5


def test_weight_scales_are_per_output_channel() -> None:
    weight = np.array([[1.0, -4.0, 0.0], [-2.0, 3.0, 0.0]], np.float32)
    np.testing.assert_allclose(weight_scales(weight, 1)[:2], np.array([2, 4]) / 127, rtol=1e-6)
    assert weight_scales(weight, 1)[2] > 0
    np.testing.assert_allclose(weight_scales(weight, 0), np.array([4, 3]) / 127, rtol=1e-6)


def test_refusals() -> None:
    tower = Tower()
    model = tower.graph()
    good = ranges(model, "s8s8", tower)
    with pytest.raises(GraphRefusal, match="no INT8 scheme 'w4'"):
        InsertQdq(scheme="w4", ranges=good)(model)
    with pytest.raises(GraphRefusal, match="no calibrated range for 'res0'"):
        InsertQdq(scheme="s8s8", ranges={k: v for k, v in good.items() if k != "res0"})(model)
    with pytest.raises((InputError, ir.passes.PreconditionError)) as caught:
        InsertQdq(scheme="s8s8", ranges=good | {"res0": (float("nan"), 1.0)})(model)
    assert "res0" in str(caught.value.__cause__ or caught.value)
    InsertQdq(scheme="s8s8", ranges=good)(model)
    with pytest.raises(GraphRefusal, match="already has QuantizeLinear"):
        InsertQdq(scheme="s8s8", ranges=good)(model)
