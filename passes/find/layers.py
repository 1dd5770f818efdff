"""Find the transformer layers of a graph: an attention, and the residual boundaries around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.passes.find.tokenwise import streams
from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.graph.shapes import reached


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One transformer layer around its ``Attention`` node.

    Attributes:
        node: The Attention node.
        q: Queries ``[B,H,T,D]``.
        k: Keys of the tokens that come in now, ``[B,Hk,T,D]``: before a cache is joined and before grouped heads are
            repeated (Hk divides H).
        heads: H, Hk and D.
        scale: Factor on the logits.
        mid: The stream after attention and residual, ``[B,T,C]``; with post-norm behind the norm of the sum.
        out: The stream after the MLP and its residual, and its norm.
    """

    node: ir.Node
    q: ir.Value
    k: ir.Value
    heads: tuple[int, int, int]
    scale: float
    mid: ir.Value
    out: ir.Value


def find_layers(model: ir.Model, what: str) -> tuple[Layer, ...]:
    """Find the layer around every ``Attention`` node, first to last.

    Args:
        model: A graph in canonical form.
        what: What to call it in a refusal.

    Raises:
        Refused: There is none, or no residual sum around one.
    """
    nodes = [node for node in model.graph if node.op_type == "Attention" and node.domain == ""]
    if not nodes:
        raise Refused(
            f"no Attention node in the {what} graph: export at opset 23, use a family that is listed, or prune another"
            " exporter's vision tower with 'lmmprune rewrite'"
        )
    return tuple(_layer(node) for node in nodes)


def _layer(node: ir.Node) -> Layer:
    q, k = node.inputs[0], node.inputs[1]
    if q is None or k is None or q.shape is None or len(q.shape) != 4:
        raise Refused(f"'{node.name}' has queries of shape {q and q.shape}, expected [B,H,T,D]")
    k = _current_keys(k)
    (heads, width), key_heads = (_number(q, 1), _number(q, 3)), _number(k, 1)
    if heads % key_heads:
        raise Refused(f"'{node.name}' has {heads} heads on {key_heads} key heads: expected a multiple")
    total = _residual(node.outputs[0], node)
    mid = _behind_norm(total)
    out = _block_output(mid, node)
    return Layer(
        node=node,
        q=q,
        k=k,
        heads=(heads, key_heads, width),
        scale=node.attributes.get_float("scale", width**-0.5),
        mid=mid,
        out=out if mid is total else _behind_norm(out),
    )


def stream_into(layer: Layer) -> ir.Value:
    """Return the stream that enters a layer: what its attention's output is added to."""
    total = layer.mid.producer()
    assert total is not None
    if total.op_type != "Add":
        assert total.inputs[0] is not None
        total = total.inputs[0].producer()
        assert total is not None
    attended = set(reached([layer.node.outputs[0]]))
    return next(value for value in streams(total) if value not in attended)


def last_gain(layers: Sequence[Layer]) -> ir.Value | None:
    """Return the gain ``[C]`` of the RMS norm behind a decoder's last layer; None if there is no such norm."""
    last = layers[-1].out.producer()
    waiting = [last] if last is not None and last.op_type == "RMSNormalization" else _users(layers[-1].out)
    while waiting:
        node = waiting.pop()
        if node.op_type == "RMSNormalization":
            return node.inputs[1]
        if node.op_type in ("Cast", "Gather", "Slice"):
            waiting += _users(node.outputs[0])
    return None


def _users(value: ir.Value) -> list[ir.Node]:
    return [node for node, _ in value.uses()]


def _number(value: ir.Value, axis: int) -> int:
    dim = None if value.shape is None or len(value.shape) <= axis else value.shape[axis]
    if not isinstance(dim, int):
        raise Refused(f"'{value.name}' has shape {value.shape}: expected a number on axis {axis}")
    return dim


def _current_keys(k: ir.Value) -> ir.Value:
    """Walk back from what enters the Attention, over repeated heads and the join with a cache, to this step's keys."""
    value = k
    while (node := value.producer()) is not None:
        source = node.inputs[0]
        assert source is not None
        if node.op_type == "Concat" and source.is_graph_input():
            current = node.inputs[1]
            assert current is not None
            return current
        if node.op_type not in {"Unsqueeze", "Expand", "Reshape"}:
            break
        value = source
    return k


# Operators on the way from an attention's output to the residual sum: each treats a token by itself.
_TO_RESIDUAL = {
    "Transpose",
    "Reshape",
    "MatMul",
    "Gemm",
    "Add",
    "Mul",
    "Cast",
    "RMSNormalization",
    "LayerNormalization",
}


def _residual(value: ir.Value, attention: ir.Node) -> ir.Value:
    """Follow an attention's output to the sum with the stream."""
    while True:
        users = [node for node, _ in value.uses()]
        if len(users) != 1:
            raise Refused(f"'{value.name}' behind '{attention.name}' has {len(users)} users, expected one")
        node = users[0]
        value = node.outputs[0]
        if node.op_type == "Add" and len(streams(node)) == 2:
            return value
        if node.op_type not in _TO_RESIDUAL:
            raise Refused(f"'{node.name}' ({node.op_type}) lies between '{attention.name}' and its residual sum")


def _behind_norm(total: ir.Value) -> ir.Value:
    """Return the stream behind a residual sum: with post-norm, where only a norm reads the sum, what the norm makes."""
    users = list(total.uses())
    if len(users) == 1 and users[0][1] == 0 and users[0][0].op_type in ("LayerNormalization", "RMSNormalization"):
        return users[0][0].outputs[0]
    return total


def _block_output(mid: ir.Value, attention: ir.Node) -> ir.Value:
    for node, _ in mid.uses():
        if node.op_type == "Add" and len(streams(node)) == 2:
            return node.outputs[0]
    raise Refused(f"no residual sum around the MLP behind '{attention.name}': expected Add(stream, MLP(norm(stream)))")
