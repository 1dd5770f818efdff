"""INT4: groups against a formula, what is stored against what it is worth, both forms in ONNX Runtime, refusals."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from decoders import IMAGE, SmallDecoder, feeds
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from towers import run

from lmmprune.compiler.lower.lower import lower
from lmmprune.compiler.onnx_files.stream_weights import layout, stream_weights
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.errors import GraphRefusal, TargetError
from lmmprune.lazy import packed
from lmmprune.passes.graph.specialize import specialize
from lmmprune.passes.int4.insert_int4 import InsertInt4
from lmmprune.passes.int4.int4 import quantize_groups
from lmmprune.passes.lower.cast_float import CastFloat
from lmmprune.passes.lower.lower_int4 import LowerInt4, pack_groups

# 48 channels: groups of 32 don't divide them.
DECODER = SmallDecoder(heads=3, kv_heads=1, width=16, layers=2)
IDS = [1, 5, *[IMAGE] * 4, 9, 2]
PRODUCTS = 5 * DECODER.layers + 1
EXACT = 1e-5


def prompt(kind: type = np.float32) -> dict[str, np.ndarray]:
    empty = np.zeros((1, 0, 16), kind)
    return feeds(DECODER, IDS, np.arange(len(IDS)), DECODER.features(4).astype(kind), [(empty, empty)] * DECODER.layers)


def by_formula(weight: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Round group by group, one number at a time."""
    inputs, outputs = weight.shape
    integers = np.zeros((inputs, outputs), np.int64)
    scales = np.zeros((math.ceil(inputs / group), outputs), np.float32)
    for column in range(outputs):
        for place in range(scales.shape[0]):
            rows = slice(place * group, (place + 1) * group)
            scale = np.float32(max(abs(weight[rows, column]).max() / np.float32(7), np.float32(1e-12)))
            scales[place, column] = scale
            integers[rows, column] = [round(float(np.float32(w) / scale)) for w in weight[rows, column]]
    return integers, scales


def worth(integers: np.ndarray, scales: np.ndarray, group: int) -> np.ndarray:
    """Return what integers ``[K,N]`` with scales ``[G,N]`` stand for."""
    spread = np.repeat(scales.astype(np.float32), group, axis=0)[: len(integers)]
    return integers.astype(np.float32) * spread


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 100), st.integers(1, 20), st.sampled_from([32, 64]), st.integers(0, 2**31), st.booleans())
def test_rounding_is_the_formula(inputs: int, outputs: int, group: int, seed: int, turned: bool) -> None:
    weight = np.random.default_rng(seed).standard_normal((inputs, outputs)).astype(np.float32)
    weight[:, 0] = 0
    given_weight = np.ascontiguousarray(weight.T).T if turned else weight
    integers, scales = quantize_groups(given_weight, group)
    expected, steps = by_formula(weight, group)
    assert np.array_equal(integers, expected)
    assert np.array_equal(scales, steps)
    assert np.abs(worth(integers, scales, group) - weight).max() <= scales.max() / 2 * (1 + 1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_integers_are_made_with_the_scales_that_the_type_can_hold(dtype: str) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    integers, scales = quantize_groups(weight, 32, dtype)
    assert np.array_equal(scales, scales.astype(kind).astype(np.float32))
    assert np.array_equal(integers, np.clip(np.rint(weight / np.repeat(scales, 32, axis=0)), -8, 7))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 100), st.integers(1, 9), st.sampled_from([32, 64]), st.integers(0, 2**31))
def test_bytes_are_those_of_the_operator(inputs: int, outputs: int, group: int, seed: int) -> None:
    """Read back one number at a time, as the operator's text says: low half first, zero is 8."""
    integers = np.random.default_rng(seed).integers(-8, 8, (inputs, outputs)).astype(np.int8)
    stored = pack_groups(integers, group)
    assert stored.shape == (outputs, math.ceil(inputs / group), group // 2)
    for k in range(stored.shape[1] * group):
        for n in range(outputs):
            byte = int(stored[n, k // group, k % group // 2])
            value = (byte >> 4 if k % 2 else byte & 15) - 8
            assert value == (integers[k, n] if k < inputs else 0)


def stored_weights(model: ir.Model) -> dict[str, np.ndarray]:
    """Return what a graph's four-bit weights are worth, by the weight's own name, from the bytes alone."""
    found = {}
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            group, inputs = (node.attributes[name].value for name in ("block_size", "K"))
            data, scales = (value.const_value.numpy() for value in node.inputs[1:3])
            halves = np.stack([data & 15, data >> 4], axis=-1).astype(np.int64) - 8
            integers = halves.reshape(len(data), -1)[:, :inputs].T
            found[node.inputs[1].name.removesuffix("/int4/packed")] = worth(integers, scales.T, group)
        elif node.op_type == "DequantizeLinear":
            data, scales = (value.const_value.numpy() for value in node.inputs[:2])
            name = node.inputs[0].name.removesuffix("/int4")
            found[name] = worth(data.astype(np.int64), scales, node.attributes["block_size"].value)
    return found


def with_weights(weights: dict[str, np.ndarray]) -> ir.Model:
    """Return the floating-point graph with other weights."""
    model = DECODER.graph()
    for name, array in weights.items():
        assert model.graph.initializers[name].const_value.shape == array.shape
        model.graph.initializers[name].const_value = ir.tensor(array.astype(np.float32), name=name)
    return model


@pytest.mark.parametrize("target", ["ort-cpu", "ort-cuda", None])
@pytest.mark.parametrize("group", [32, 64])
def test_the_graph_computes_with_what_is_stored(group: int, target: str | None) -> None:
    """The oracle: the weights unpacked by hand, put into the graph that was never quantized."""
    model = DECODER.graph()
    InsertInt4(group=group)(model)
    if target is not None:
        lower(model, TARGETS[target])
    stored = stored_weights(model)
    assert len(stored) == PRODUCTS
    exact, found = run(with_weights(stored), prompt()), run(model, prompt())
    worst = max(np.abs(found[name] - exact[name]).max() / np.abs(exact[name]).max() for name in exact)
    # At level 4 activations are rounded to eight bits, group by group.
    assert worst < (0.05 if target == "ort-cpu" else EXACT)
    lost = np.abs(run(DECODER.graph(), prompt())["logits"] - exact["logits"]).max()
    assert lost > 100 * EXACT, "four bits must be seen"


def test_half_precision() -> None:
    model = DECODER.graph()
    InsertInt4(group=32, dtype="float16")(model)
    CastFloat(dtype="float16")(model)
    lower(model, TARGETS["ort-cuda"])
    exact, found = run(with_weights(stored_weights(model)), prompt()), run(model, prompt(np.float16))
    assert found["logits"].dtype == np.float16
    assert np.abs(found["logits"] - exact["logits"]).max() < 5e-3 * np.abs(exact["logits"]).max()


def test_what_stays_and_what_is_shared() -> None:
    model = DECODER.graph()
    shared = next(node for node in model.graph if node.name == "node_k_flat0")
    shared.replace_input_with(1, model.graph.initializers["v0"])
    del model.graph.initializers["k0"]
    result = InsertInt4(group=32, keep_float=frozenset({"lm_head"}))(model)
    assert result.modified
    names = set(model.graph.initializers)
    assert {"head", "embed"} <= names
    assert "v0" not in names
    assert sum(value.dtype == ir.DataType.INT4 for value in model.graph.initializers.values()) == PRODUCTS - 2
    lower(model, TARGETS["ort-cpu"])
    assert sum(node.op_type == "MatMulNBits" for node in model.graph) == PRODUCTS - 1
    assert not {name for name in model.graph.initializers if name.endswith(("/int4", "/scale"))}
    assert not LowerInt4(level=4)(model).modified
    assert run(model, prompt())["logits"].shape == (1, 1, 24)


def test_shapes_are_known_behind_the_operator() -> None:
    model = DECODER.graph()
    InsertInt4(group=32)(model)
    lower(model, TARGETS["ort-cpu"])
    copy = specialize(model, seq=7, image_tokens=4)
    assert [tuple(value.shape) for value in copy.graph.outputs[:1]] == [(1, 1, 24)]
    assert any(node.op_type == "MatMulNBits" for node in model.graph)


def test_files_hold_two_numbers_in_a_byte(tmp_path: Path) -> None:
    model = DECODER.graph()
    InsertInt4(group=32)(model)
    expected = {
        name: value.const_value.numpy().astype(np.int8)
        for name, value in model.graph.initializers.items()
        if value.dtype == ir.DataType.INT4
    }
    placed = [place for place in layout(model) if place.value.dtype == ir.DataType.INT4]
    assert sum(place.bytes for place in placed) == sum(array.size for array in expected.values()) / 2
    stream_weights(layout(model), tmp_path / "d.data", note=lambda name, count: None)
    ir.save(model, tmp_path / "d.onnx")
    read = onnx.load(str(tmp_path / "d.onnx"))
    found = {tensor.name: numpy_helper.to_array(tensor).astype(np.int8) for tensor in read.graph.initializer}
    assert all(np.array_equal(found[name], array) for name, array in expected.items())


def test_an_odd_number_of_halves() -> None:
    assert packed(np.array([1, -1, -8], ml_dtypes.int4)).tolist() == [0xF1, 0x08]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": 48}, "no groups of 48 inputs: expected 32, 64, 128"),
        ({"group": 32, "keep_float": frozenset({"x"})}, "no block 'x' to keep in floating point"),
        ({"group": 32, "whole": True}, r"'q0' has 48 inputs, which groups of 32 don't divide: keep its block in float"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    with pytest.raises(GraphRefusal, match=message):
        InsertInt4(**options)(DECODER.graph())  # type: ignore[arg-type]  # some are wrong on purpose


def test_a_quantized_graph_isnt_quantized_again() -> None:
    model = DECODER.graph()
    InsertInt4(group=32)(model)
    with pytest.raises(GraphRefusal, match="already has DequantizeLinear"):
        InsertInt4(group=32)(model)


def test_another_runtimes_operator_is_refused_by_tensorrt() -> None:
    model = DECODER.graph()
    InsertInt4(group=32)(model)
    LowerInt4(level=0)(model)
    with pytest.raises(TargetError, match=r"operators of 'com\.microsoft' need a plug-in"):
        lower(model, TARGETS["tensorrt-rtx"])
