"""Write Attention as primitives, for parsers that don't know it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.lower.lower_node import Lowering, LowerOperator, attribute, nodes_of, number, rank

# Added to what a query may not see: float16's lowest, so that a kernel may compute the sum in any type.
HIDDEN = -65504.0

# A mask -> the same as float32 addends, written once for all layers.
_Addends = dict[ir.Value, ir.Value]


@dataclass(frozen=True, kw_only=True)
class LowerAttention(LowerOperator):
    """Replace ``Attention`` by the pattern that TensorRT fuses: scale, MatMul, mask, Softmax, MatMul.

    Before: ``Attention(q [B,H,S,D], k [B,Hk,T,D], v [B,Hk,T,D], mask)``
    After: ``MatMul(Cast(Softmax(Add(Cast(MatMul(Mul(q, scale), Transpose(k))), addend))), v)``

    The scale stands before the first MatMul, as TensorRT asks for (doc: Fused Attention, "numeric stability and
    performance"). The products are in the stream's type, mask and softmax in float32; that the fuser sees through
    these casts is believed, not seen. Boolean masks become addends of 0 and -65504, once for all layers. Also taken:
    ``[B,S,H*D]`` inputs, fewer key heads than query heads, a cache that the node joins itself (past and present), and
    ``is_causal``: key j is seen by query i if ``j <= i + past``. A query that may see no key at all gets the mean of
    the values, where ONNX gives zero.

    Reference: Vaswani et al. 2017, arXiv 1706.03762; ONNX operator Attention-23.
    """

    op_type: ClassVar[str] = "Attention"

    def requires(self, model: ir.Model) -> None:
        """Check that every node is of a form that is taken."""
        for node in nodes_of(model, "Attention"):
            _check(Lowering(node))

    def rewriter(self) -> Callable[[ir.Graph, Lowering], None]:
        """Return what replaces one node."""
        return functools.partial(_lower, addends=_Addends())


def _check(new: Lowering) -> None:
    node, name = new.node, new.node.name
    rank(new.input(0), expected=(3, 4))
    number(new.input(0), -1)
    if attribute(node, "softcap", 0.0):
        raise Refused(f"'{name}' has a softcap, which isn't lowered: choose a target that takes Attention")
    if new.given(6) is not None:
        raise Refused(
            f"'{name}' reads lengths of its keys (nonpad_kv_seqlen): choose a target with Attention of opset 24"
        )
    if new.used(3):
        raise Refused(f"'{name}' gives its logits to others (qk_matmul_output): compute them from q and k instead")
    heads, key_heads = _heads(new)
    if heads % key_heads:
        raise Refused(f"'{name}' has {heads} heads on {key_heads} key heads, expected a multiple")


def _heads(new: Lowering) -> tuple[int, int]:
    """Return H and Hk."""
    found = []
    for index, name in ((0, "q_num_heads"), (1, "kv_num_heads")):
        value = new.input(index)
        heads = number(value, 1) if rank(value, expected=(3, 4)) == 4 else attribute(new.node, name, 0)
        if not heads:
            raise Refused(f"'{new.node.name}' reads [B,S,H*D] but doesn't say {name}: add the attribute")
        found.append(heads)
    return found[0], found[1]


def _lower(graph: ir.Graph, new: Lowering, addends: _Addends) -> None:
    b, node = new.b, new.node
    heads, key_heads = _heads(new)
    flat = rank(new.input(0), expected=(3, 4)) == 3
    width = number(new.input(0), -1) // (heads if flat else 1)
    q, k, v = (_split(new, index, count) for index, count in ((0, heads), (1, key_heads), (2, key_heads)))
    outputs = {}
    if new.given(4) is not None:
        k, v = b.op("Concat", new.given(4), k, axis=2), b.op("Concat", new.given(5), v, axis=2)
        outputs = {index: value for index, value in ((1, k), (2, v)) if new.used(index)}
    elif new.used(1) or new.used(2):
        outputs = {index: b.op("Identity", value) for index, value in ((1, k), (2, v)) if new.used(index)}
    k, v = (_repeated(new, value, index, heads // key_heads) for index, value in ((1, k), (2, v)))
    scale = attribute(node, "scale", width**-0.5)
    if scale != 1:
        q = b.op("Mul", q, new.number(scale))
    logits = new.to_float(b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])))
    for addend in _masks(new, q, k, addends):
        logits = b.op("Add", logits, addend)
    mixed = b.op("MatMul", new.back(b.op("Softmax", logits, axis=-1)), v)
    if flat:
        mixed = b.op("Reshape", b.op("Transpose", mixed, perm=[0, 2, 1, 3]), [0, 0, -1])
    new.replace(graph, {0: mixed, **outputs})


def _split(new: Lowering, index: int, heads: int) -> ir.Value:
    """Return an input as ``[B,H,S,D]``."""
    value = new.input(index)
    if rank(value, expected=(3, 4)) == 4:
        return value
    return new.b.op("Transpose", new.b.op("Reshape", value, [0, 0, heads, -1]), perm=[0, 2, 1, 3])


def _repeated(new: Lowering, value: ir.Value, index: int, group: int) -> ir.Value:
    """Give every query head a key head of its own: the g-th key head serves the queries from g * group on."""
    if group == 1:
        return value
    heads, key_heads = _heads(new)
    source = new.input(index)
    width = number(source, -1) // (key_heads if rank(source, expected=(3, 4)) == 3 else 1)
    spread = new.b.op("Expand", new.b.op("Unsqueeze", value, [2]), [1, 1, group, 1, 1])
    return new.b.op("Reshape", spread, [0, heads, -1, width])


def _masks(new: Lowering, q: ir.Value, k: ir.Value, done: _Addends) -> list[ir.Value]:
    """Return what is added to the logits: the causal triangle, and the mask that is given."""
    b, found = new.b, []
    if attribute(new.node, "is_causal", 0):
        rows, columns = (b.op("Squeeze", b.op("Shape", value, start=2, end=3), [0]) for value in (q, k))
        zero, one = b.constant(0), b.constant(1)
        row = b.op("Unsqueeze", b.op("Range", zero, rows, one), [1])
        if new.given(4) is not None:
            row = b.op("Add", row, b.op("Shape", new.given(4), start=2, end=3))
        column = b.op("Unsqueeze", b.op("Range", zero, columns, one), [0])
        found.append(_addend(new, b.op("LessOrEqual", column, row)))
    mask = new.given(3)
    if mask is not None:
        if mask not in done:
            done[mask] = _addend(new, mask) if mask.dtype == ir.DataType.BOOL else new.to_float(mask, mask.dtype)
        found.append(done[mask])
    return found


def _addend(new: Lowering, seen: ir.Value) -> ir.Value:
    return new.b.op("Where", seen, np.float32(0), np.float32(HIDDEN))
