"""Which operators treat each token by itself, and the value that a stretch of them begins with."""

from __future__ import annotations

import onnx_ir as ir

from lmmprune.passes.find.groups import is_move
from lmmprune.passes.graph.refusals import Refused

_ELEMENTWISE = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mod", "Neg", "Abs", "Sign", "Reciprocal", "Sqrt"),
    *("Exp", "Log", "Erf", "Sin", "Cos", "Tanh", "Sigmoid", "Floor", "Ceil", "Round", "Clip", "Where", "Not", "And"),
    *("Or", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "IsNaN", "Cast", "CastLike", "Identity"),
    *("Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "Swish", "Softplus"),
    *("Softsign", "HardSigmoid", "HardSwish"),
}
_CHANNELWISE = {"MatMul", "Gemm", "LayerNormalization", "RMSNormalization"}
_ALONG_CHANNELS = {"Softmax", "LogSoftmax"}
"""Along the last axis only."""


def is_tokenwise(node: ir.Node) -> bool:
    """Return whether every token of a node's output depends on the same token of its inputs alone, by definition.

    ``[B,N,C]`` with weights or constants beside it: elementwise operators, products with a weight on the right, norms
    over the channels.
    """
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type in _ALONG_CHANNELS:
        rank = None if node.outputs[0].shape is None else len(node.outputs[0].shape)
        return node.attributes.get_int("axis", -1) in (-1, None if rank is None else rank - 1)
    if node.op_type in _CHANNELWISE:
        return len(streams(node)) == 1 and node.inputs[0] is streams(node)[0]
    return node.op_type in _ELEMENTWISE


def streams(node: ir.Node) -> list[ir.Value]:
    """Return the inputs of a node that aren't weights or constants, each once."""
    return list(
        dict.fromkeys(
            value
            for value in node.inputs
            if value is not None and not value.is_initializer() and value.const_value is None
        )
    )


def begin_of_tokenwise(value: ir.Value) -> ir.Value:
    """Walk back from features through the projector to the value that enters it, or to the tower's end.

    That is what drops CLS, puts several patches into a token, or the tiles of a picture together; without any of them,
    the last residual sum. An activation may split into ways that meet again (``x * sigmoid(x)``): only where all of
    them have met can the projector begin.

    Raises:
        Refused: An operator on the way mixes tokens, or the ways don't meet.
    """
    start = value.producer()
    order = {node: index for index, node in enumerate(start.graph)} if start and start.graph else {}
    open_ways = [value]
    while True:
        latest = max(open_ways, key=lambda way: _place(way, order))
        node = latest.producer()
        if node is None:
            raise Refused("no attention before 'image_features': the projector's input could not be found")
        # A sum of two ways that all features come through is the tower's last residual; an activation's sum
        # (x + 0.04 * x**3) lies beside another way.
        if len(open_ways) == 1 and (is_move(node) or (node.op_type == "Add" and len(streams(node)) == 2)):
            return latest
        if not is_tokenwise(node):
            raise Refused(
                f"'{node.name}' ({node.op_type}) lies between the tower and 'image_features':"
                " expected token-wise operators, then the Slice that drops CLS or a pixel shuffle"
            )
        open_ways.remove(latest)
        open_ways.extend(way for way in streams(node) if way not in open_ways)


def _place(value: ir.Value, order: dict[ir.Node, int]) -> int:
    node = value.producer()
    return -1 if node is None else order.get(node, -1)
