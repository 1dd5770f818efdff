"""Every rule of the Q/DQ lint: what our own pass writes breaks none, and each rule sees the graph that breaks it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from test_insert_qdq import freeprune, ranges
from towers import Tower

from lmmprune.passes.int4.insert_int4 import InsertInt4
from lmmprune.passes.int8.insert_qdq import InsertQdq
from lmmprune.passes.int8.int8 import INT4, LINTED, SCHEMES
from lmmprune.passes.int8.lint_qdq import RULES, is_quantized, lint_qdq

Breaks = Callable[[ir.Model], None]


def quantized(scheme: str) -> ir.Model:
    tower = Tower(patches=16, heads=4, width=8)
    model = tower.graph()
    freeprune(model, tower, 6)
    if scheme == INT4:
        InsertInt4(group=32)(model)
        return model
    InsertQdq(scheme=scheme, ranges=ranges(model, scheme, tower) if SCHEMES[scheme].calibrated else {})(model)
    return model


def constant(model: ir.Model, array: np.ndarray, name: str) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
    model.graph.register_initializer(value)
    return value


def node(model: ir.Model, op: str, *, weight: bool = False) -> ir.Node:
    """Return the first node of a kind; of Q and DQ, the first one of an activation or of a weight."""
    for found in model.graph:
        value = found.inputs[0] if found.inputs else None
        if found.op_type == op and (
            op not in {"QuantizeLinear", "DequantizeLinear"} or weight == value.is_initializer()
        ):
            return found
    raise AssertionError(op)


def feeding_product(model: ir.Model) -> ir.Node:
    """Return the DQ of the first MatMul's activation."""
    return node(model, "MatMul").inputs[0].producer()


def zero_scale(model: ir.Model) -> None:
    node(model, "QuantizeLinear").replace_input_with(1, constant(model, np.float32(0), "bad"))


def computed_scale(model: ir.Model) -> None:
    target = node(model, "QuantizeLinear")
    made = ir.node("Abs", [target.inputs[1]])
    made.outputs[0].name = "computed"
    model.graph.insert_before(target, made)
    target.replace_input_with(1, made.outputs[0])


def zero_point(model: ir.Model) -> None:
    node(model, "QuantizeLinear").replace_input_with(2, constant(model, np.int8(3), "bad"))


def other_type(model: ir.Model) -> None:
    current = node(model, "QuantizeLinear").inputs[2].dtype
    other = np.uint8(0) if current == ir.DataType.INT8 else np.int8(0)
    node(model, "QuantizeLinear").replace_input_with(2, constant(model, other, "bad"))


def channel_scales(model: ir.Model) -> None:
    node(model, "QuantizeLinear").replace_input_with(1, constant(model, np.ones(8, np.float32), "bad"))


def one_weight_scale(model: ir.Model) -> None:
    node(model, "DequantizeLinear", weight=True).replace_input_with(1, constant(model, np.float32(1), "bad"))


def wrong_axis(model: ir.Model) -> None:
    dq = node(model, "MatMul").inputs[1].producer()
    dq.attributes["axis"] = ir.AttrInt64("axis", 0)


def wrong_groups(model: ir.Model) -> None:
    node(model, "MatMul").inputs[1].producer().attributes["axis"] = ir.AttrInt64("axis", 1)


def no_groups(model: ir.Model) -> None:
    node(model, "MatMul").inputs[1].producer().attributes["block_size"] = ir.AttrInt64("block_size", 0)


def weight_at_run_time(model: ir.Model) -> None:
    dq = node(model, "DequantizeLinear", weight=True)
    shape = tuple(dq.inputs[0].shape)
    q = ir.node("QuantizeLinear", [constant(model, np.ones(shape, np.float32), "f"), *dq.inputs[1:]])
    q.outputs[0].name = "q"
    model.graph.insert_before(dq, q)
    dq.replace_input_with(0, q.outputs[0])


def unsigned_weight(model: ir.Model) -> None:
    dq = node(model, "DequantizeLinear", weight=True)
    dq.replace_input_with(0, constant(model, np.ones(tuple(dq.inputs[0].shape), np.uint8), "u"))


def one_side(model: ir.Model) -> None:
    dq = feeding_product(model)
    node(model, "MatMul").replace_input_with(0, dq.inputs[0].producer().inputs[0])


def activation_too(model: ir.Model) -> None:
    target = node(model, "MatMul")
    q = ir.node(
        "QuantizeLinear", [target.inputs[0], constant(model, np.float32(1), "s"), constant(model, np.int8(0), "z")]
    )
    dq = ir.node("DequantizeLinear", [q.outputs[0], *q.inputs[1:]])
    q.outputs[0].name, dq.outputs[0].name = "q", "dq"
    model.graph.insert_before(target, [q, dq])
    target.replace_input_with(0, dq.outputs[0])


def pair(model: ir.Model, value: ir.Value, name: str, kind: type = np.int8) -> ir.Value:
    scale, zero = constant(model, np.float32(0.5), f"{name}/s"), constant(model, kind(0), f"{name}/z")
    q = ir.node("QuantizeLinear", [value, scale, zero], name=f"{name}/q")
    dq = ir.node("DequantizeLinear", [q.outputs[0], scale, zero], name=f"{name}/dq")
    q.outputs[0].name, dq.outputs[0].name = f"{name}/q", f"{name}/dq"
    if value.producer() is None:
        model.graph.insert_before(next(iter(model.graph)), [q, dq])
    else:
        model.graph.insert_after(value.producer(), [q, dq])
    return dq.outputs[0]


def on_output(model: ir.Model) -> None:
    output = node(model, "MatMul").outputs[0]
    users = list(output.uses())
    made = pair(model, output, "late")
    for user, index in users:
        user.replace_input_with(index, made)


def second_scale(model: ir.Model) -> None:
    target = node(model, "MatMul")
    value = target.inputs[0].producer().inputs[0].producer().inputs[0]
    target.replace_input_with(0, pair(model, value, "again", np.uint8 if is_u8(model) else np.int8))


def is_u8(model: ir.Model) -> bool:
    return node(model, "QuantizeLinear").inputs[2].dtype == ir.DataType.UINT8


def moved(model: ir.Model) -> None:
    target = node(model, "MatMul")
    shape = constant(model, np.array([0, 0, -1], np.int64), "shape")
    reshape = ir.node("Reshape", [target.inputs[0], shape], name="moved")
    reshape.outputs[0].name = "moved"
    model.graph.insert_before(target, reshape)
    target.replace_input_with(0, reshape.outputs[0])


def quantized_stream(model: ir.Model) -> None:
    for found in model.graph:
        streams = [v for v in found.inputs if v is not None and not v.is_initializer()]
        if found.op_type == "Add" and len(streams) == 2 and "lmmprune" not in str(found.name):
            index = list(found.inputs).index(streams[0])
            found.replace_input_with(index, pair(model, streams[0], "stream"))
            return


def quantized_score(model: ir.Model) -> None:
    for found in model.graph:
        if str(found.name).startswith("lmmprune/") and found.inputs[0].producer() is not None:
            found.replace_input_with(0, pair(model, found.inputs[0], "score"))
            return


BREAKS: dict[str, list[tuple[str, Breaks]]] = {
    "scale": [("s8s8", zero_scale), ("u8s8", computed_scale)],
    "symmetric": [("s8s8", zero_point)],
    "activation-type": [("s8s8", other_type), ("u8s8", other_type)],
    "per-tensor": [("s8s8", channel_scales)],
    "per-channel": [("s8s8", one_weight_scale), ("u8s8", wrong_axis), ("s8-weights", one_weight_scale)],
    "per-group": [(INT4, wrong_groups), (INT4, no_groups)],
    "stored": [("s8s8", weight_at_run_time)],
    "weight-type": [("s8s8", unsigned_weight), (INT4, unsigned_weight)],
    "both-inputs": [("s8s8", one_side), ("u8s8", one_side)],
    "weights-only": [("s8-weights", activation_too)],
    "no-output-pair": [("s8s8", on_output)],
    "shared-scale": [("s8s8", second_scale), ("u8s8", second_scale)],
    "placement": [("s8s8", moved)],
    "stream": [("s8s8", quantized_stream)],
    "score": [("s8s8", quantized_score)],
}


def test_every_rule_is_broken_by_a_test() -> None:
    assert BREAKS.keys() == RULES.keys()


@pytest.mark.parametrize("scheme", LINTED)
def test_what_insert_qdq_writes_breaks_no_rule(scheme: str) -> None:
    model = quantized(scheme)
    assert is_quantized(model)
    assert lint_qdq(model, scheme) == []


@pytest.mark.parametrize(
    ("rule", "scheme", "breaks"), [(rule, scheme, b) for rule, rows in BREAKS.items() for scheme, b in rows]
)
def test_a_broken_rule_is_found(rule: str, scheme: str, breaks: Breaks) -> None:
    model = quantized(scheme)
    breaks(model)
    findings = [finding for finding in lint_qdq(model, scheme) if finding.rule == rule]
    assert findings, f"{breaks.__name__} isn't seen by '{rule}'"
    assert all(finding.node and finding.found for finding in findings)


def test_a_graph_for_one_runtime_breaks_the_rules_of_another() -> None:
    assert {f.rule for f in lint_qdq(quantized("u8s8"), "s8s8")} >= {"symmetric", "activation-type"}
    assert {f.rule for f in lint_qdq(quantized("s8s8"), "u8s8")} == {"activation-type"}


def test_a_float_graph_has_nothing_to_find() -> None:
    model = Tower(patches=16, heads=4, width=8).graph()
    assert not is_quantized(model)
    assert lint_qdq(model, "s8s8") == []
