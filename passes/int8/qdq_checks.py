"""The checks behind the lint of Q/DQ: each yields the nodes that break one rule, with what is wrong there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from lmmprune.names import METHOD
from lmmprune.passes.graph.builder import SCORE
from lmmprune.passes.int8.int8 import Scheme, output_axis
from lmmprune.stored import Array

Findings = Iterator[tuple[ir.Node, str]]

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_PAIRS = {_Q, _DQ}
_INTEGER = {"MatMul", "Gemm", "Conv"}
_MOVES = {"Reshape", "Transpose", "Slice", "Gather", "Squeeze", "Unsqueeze", "Concat", "Expand"}


def _constant(value: ir.Value | None) -> Array | None:
    """Return the values of a constant, also of one that a Constant node makes."""
    if value is None:
        return None
    tensor = value.const_value
    if tensor is None and (producer := value.producer()) is not None and producer.op_type == "Constant":
        attribute = producer.attributes.get("value")
        tensor = None if attribute is None else attribute.as_tensor()
    return None if tensor is None else tensor.numpy()


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _nodes(model: ir.Model, kinds: set[str]) -> Iterator[ir.Node]:
    return (node for node in model.graph if node.op_type in kinds)


def _behind(node: ir.Node) -> list[ir.Node]:
    return [user for output in node.outputs for user, _ in output.uses()]


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _holds_weight(node: ir.Node) -> bool:
    """Say whether a pair's input is a weight: a constant of two or more dimensions."""
    value = node.inputs[0]
    producer = _producer(value)
    if node.op_type == _DQ and producer is not None and producer.op_type == _Q:
        return _holds_weight(producer)
    return value is not None and value.is_initializer() and value.shape is not None and len(value.shape) >= 2


def _activation_pairs(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in _nodes(model, _PAIRS) if not _holds_weight(node))


def scale_is_sound(model: ir.Model, scheme: Scheme) -> Findings:
    """Yield scales that are computed, zero, or no numbers."""
    for node in _nodes(model, _PAIRS):
        scale = _constant(_input(node, 1))
        if scale is None:
            yield node, "its scale is computed at run-time"
        elif not (np.isfinite(scale.astype(np.float64)) & (scale.astype(np.float64) > 0)).all():
            yield node, "its scale isn't a positive number"


def zero_point_is_zero(model: ir.Model, scheme: Scheme) -> Findings:
    """Yield zero points that are computed or not 0."""
    for node in _nodes(model, _PAIRS):
        zero = _input(node, 2)
        values = _constant(zero)
        if zero is not None and (values is None or values.any()):
            yield node, "its zero point " + ("is computed at run-time" if values is None else "isn't 0")


def activation_type(model: ir.Model, scheme: Scheme) -> Findings:
    """Yield activations of another integer type than the scheme's."""
    for node in _activation_pairs(model):
        if node.op_type != _Q:
            continue
        zero = _input(node, 2)
        # Without a zero point, QuantizeLinear makes uint8.
        kind = zero.dtype if zero is not None else ir.DataType(node.attributes.get_int("output_dtype", 2) or 2)
        if kind != scheme.activation:
            yield node, f"it makes {kind}, expected {scheme.activation}"


def activation_per_tensor(model: ir.Model, scheme: Scheme) -> Findings:
    """Yield activations with a scale per channel."""
    for node in _activation_pairs(model):
        scale = node.inputs[1]
        if scale is not None and scale.shape is not None and any(dim != 1 for dim in scale.shape):
            yield node, f"its scale has shape {list(scale.shape)}, expected one number"


def weight_per_channel(model: ir.Model, scheme: Scheme) -> Findings:
    """Yield weights with one scale, or with scales along the wrong axis."""
    for node in _nodes(model, _INTEGER):
        dq = _producer(_input(node, 1))
        if dq is None or dq.op_type != _DQ or not _holds_weight(dq):
            continue
        weight, scale = node.inputs[1], _constant(_input(dq, 1))
        if weight is None or weight.shape is None or scale is None or scale.size == 1:
            if scale is not None and scale.size == 1:
                yield dq, "one scale for the whole weight, expected one per output channel"
            continue
        axis, rank = dq.attributes.get_int("axis", 1), len(weight.shape)
        expected = output_axis(node)
        if axis % rank != expected:
            yield dq, f"scales along axis {axis} of {node.op_type}'s weight, expected axis {expected}"


def weight_is_stored(model: ir.Model, scheme: Scheme) -> Findings:
    """Yield weights that are quantized at run-time."""
    for node in _nodes(model, {_Q}):
        if _holds_weight(node):
            yield node, "it quantizes a floating-point weight at run-time, expected stored INT8"


def weight_per_group(model: ir.Model, scheme: Scheme) -> Findings:
    """Yield weights whose scales aren't in groups along the inputs."""
    for node in _nodes(model, _INTEGER):
        dq = _producer(_input(node, 1))
        if dq is None or dq.op_type != _DQ or not _holds_weight(dq):
            continue
        weight, size, axis = node.inputs[1], dq.attributes.get_int("block_size", 0), dq.attributes.get_int("axis", 1)
        if not size:
            yield dq, "its scales aren't in groups"
        elif weight is not None and weight.shape is not None and axis % len(weight.shape) == output_axis(node):
            yield dq, f"its groups lie along axis {axis} of {node.op_type}'s weight, the output channels"


def weight_type(model: ir.Model, scheme: Scheme) -> Findings:
    """Yield weights of another type than the scheme's."""
    for node in _nodes(model, {_DQ}):
        if not _holds_weight(node):
            continue
        values = node.inputs[0]
        if values is not None and values.is_initializer() and values.dtype != scheme.weight:
            yield node, f"its weight is {values.dtype}, expected {scheme.weight}"


def both_sides(model: ir.Model, scheme: Scheme) -> Findings:
    """Yield products with one quantized input."""
    for node in _nodes(model, _INTEGER):
        sides = [
            (producer := _producer(_input(node, index))) is not None and producer.op_type == _DQ for index in (0, 1)
        ]
        if sides[0] != sides[1]:
            yield node, f"only its {'first' if sides[0] else 'second'} input is quantized"


def weights_only(model: ir.Model, scheme: Scheme) -> Findings:
    """Yield quantized activations."""
    for node in _activation_pairs(model):
        if node.op_type == _Q:
            yield node, "an activation is quantized, expected weights only"


def no_pair_on_output(model: ir.Model, scheme: Scheme) -> Findings:
    """Yield pairs between a product and what is fused to it."""
    for node in _activation_pairs(model):
        producer = _producer(node.inputs[0])
        if node.op_type != _Q or producer is None or producer.op_type not in _INTEGER:
            continue
        readers = [user for dq in _behind(node) for user in _behind(dq)]
        # Another weighted product may read it: then the pair belongs to that one's input.
        if any(user.op_type not in _INTEGER for user in readers) or not readers:
            yield node, f"it lies on the output of '{producer.name}', before its bias or activation"


def shared_scale(model: ir.Model, scheme: Scheme) -> Findings:
    """Yield values that are quantized with several scales."""
    first: dict[ir.Value, tuple[ir.Node, bytes]] = {}
    for node in _activation_pairs(model):
        value, scale = node.inputs[0], _constant(_input(node, 1))
        if node.op_type != _Q or value is None or scale is None:
            continue
        other = first.setdefault(value, (node, scale.tobytes()))
        if other[1] != scale.tobytes():
            yield node, f"'{value.name}' is quantized with another scale at '{other[0].name}'"


def next_to_product(model: ir.Model, scheme: Scheme) -> Findings:
    """Yield operators between a pair and its product."""
    for node in _nodes(model, {_DQ}):
        for user in _behind(node):
            if user.op_type in _MOVES:
                yield user, f"{user.op_type} lies between '{node.name}' and the product that it belongs to"


def stream_stays_float(model: ir.Model, scheme: Scheme) -> Findings:
    """Yield residual sums of quantized values."""
    for node in _nodes(model, {"Add"}):
        streams = [value for value in node.inputs if value is not None and not value.is_initializer()]
        for value in streams if len(streams) == 2 else ():
            producer = _producer(value)
            if producer is not None and producer.op_type == _DQ:
                yield node, f"the residual sum reads '{producer.name}', which is quantized"


def scores_stay_float(model: ir.Model, scheme: Scheme) -> Findings:
    """Yield scores of quantized values."""
    for node in model.graph:
        ours = SCORE in node.metadata_props or METHOD in node.metadata_props
        if ours and any((p := _producer(value)) is not None and p.op_type == _DQ for value in node.inputs):
            yield node, "a score is computed from quantized values"
