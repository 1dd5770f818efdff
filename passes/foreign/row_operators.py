"""Say an operator on rows of tokens, in whatever order and shape, on ``[B,T,C]``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from lmmprune.passes.foreign.layouts import Order
from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.graph.moves import constant_of
from lmmprune.passes.graph.shapes import is_constant, static_shape

# Operators that treat each number by itself.
_ENTRYWISE = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Abs", "Exp", "Log", "Sqrt", "Reciprocal", "Erf", "Tanh", "Sigmoid"),
    *("Gelu", "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "PRelu", "Softplus", "Softsign", "HardSigmoid", "HardSwish"),
    *("Mish", "Swish", "Clip", "Cast", "Min", "Max", "Identity"),
}
# Those that treat each row by itself, along their attribute ``axis``.
_ALONG_AXIS = {"LayerNormalization": -1, "RMSNormalization": -1, "Softmax": -1, "LogSoftmax": -1, "Split": 0}
_REDUCTIONS = {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"}


@dataclass(frozen=True, kw_only=True)
class RowNode:
    """A node some of whose inputs are rows of tokens.

    Attributes:
        b: Where its twin is written.
        node: The node.
        bases: For each input that is rows, the same as ``[B,T,C]``; None for the others.
        order: Order of the rows, the same for all.
        shape: Shape of the rows, of most of them if inputs have different numbers, without their channels.
        batch: B.
    """

    b: Builder
    node: ir.Node
    bases: Sequence[ir.Value | None]
    order: Order
    shape: tuple[int, ...]
    batch: int

    @property
    def token_axis(self) -> int | None:
        """The axis that counts tokens, if there is one that counts nothing else."""
        if self.batch == 1:
            return next((axis for axis, size in enumerate(self.shape) if size > 1), None)
        return ("BT", "TB").index(self.order) ^ 1 if len(self.shape) == 2 else None

    def is_last(self, axis: int) -> bool:
        """Return whether an axis is that of the channels."""
        return axis in (-1, len(self.shape))

    def is_tokens(self, axis: int) -> bool:
        """Return whether an axis is that of the tokens."""
        return axis % (len(self.shape) + 1) == self.token_axis


def write_on_tokens(rows: RowNode) -> Sequence[ir.Value] | None:
    """Write a node's twin on ``[B,T,C]``.

    Returns:
        What it makes, ``[B,T',C']`` with the node's own rows in the order of ``rows``; or, where the node takes one
        token, exactly what it makes. None: that can't be said.
    """
    op_type = rows.node.op_type
    if rows.node.domain not in ("", "ai.onnx"):
        return None
    if op_type in _ENTRYWISE:
        return _entrywise(rows)
    if op_type in _ALONG_AXIS:
        return _along_axis(rows)
    if op_type in _REDUCTIONS:
        return _reduction(rows)
    return _OTHERS[op_type](rows) if op_type in _OTHERS else None


def _same(rows: RowNode, inputs: Sequence[ir.Value | Any], **attributes: Any) -> Sequence[ir.Value] | None:
    """Write the same operator; each output has the channels that the node's has, and as many tokens."""
    kept = {name: value for name, value in rows.node.attributes.items() if name not in attributes}
    count = len(rows.node.outputs)
    made = rows.b.ops(rows.node.op_type, count, *inputs, **attributes, **kept)
    for new, old in zip(made, rows.node.outputs, strict=True):
        *lead, channels = static_shape(old)
        if not lead or np.prod(lead) % rows.batch:
            return None
        new.shape = ir.Shape([rows.batch, int(np.prod(lead)) // rows.batch, channels])
    return made


def _entrywise(rows: RowNode) -> Sequence[ir.Value] | None:
    if static_shape(rows.node.outputs[0])[:-1] != rows.shape:
        return None
    inputs: list[ir.Value | None] = []
    for value, base in zip(rows.node.inputs, rows.bases, strict=True):
        if value is None or base is not None:
            inputs.append(base)
        elif not is_constant(value) or (fitted := _fitted(rows, value)) is None:
            return None
        else:
            inputs.append(fitted)
    return _same(rows, inputs)


def _fitted(rows: RowNode, value: ir.Value) -> ir.Value | None:
    """Return a constant in the form that it has beside ``[B,T,C]``."""
    shape, b = static_shape(value), rows.b
    if np.prod(shape[:-1]) == 1:
        return value if len(shape) <= 3 else b.op("Reshape", value, [shape[-1]])
    lead = (*(1 for _ in range(len(rows.shape) + 1 - len(shape))), *shape[:-1])
    if len(lead) == 2 and rows.token_axis is not None and rows.batch > 1:
        # Beside [T,B,C]: one row for each token, for each picture, or for both.
        full = value if len(shape) == 3 else b.op("Reshape", value, [*lead, shape[-1]])
        return b.op("Transpose", full, perm=[1, 0, 2]) if rows.order == "TB" else full
    if lead != rows.shape:
        return None
    tokens = int(np.prod(lead)) // rows.batch
    first = (rows.batch, tokens) if rows.order == "BT" else (tokens, rows.batch)
    full = b.op("Reshape", value, [*first, shape[-1]])
    return b.op("Transpose", full, perm=[1, 0, 2]) if rows.order == "TB" else full


def _along_axis(rows: RowNode) -> Sequence[ir.Value] | None:
    axis = rows.node.attributes.get_int("axis", _ALONG_AXIS[rows.node.op_type])
    others = [value for value in list(rows.node.inputs)[1:] if value is not None]
    if rows.bases[0] is None or not rows.is_last(axis) or not all(is_constant(value) for value in others):
        return None
    # Means and deviations, which a norm may give as well, have one number per row.
    if rows.node.op_type.endswith("Normalization") and len(rows.node.outputs) > 1:
        return None
    return _same(rows, [rows.bases[0], *others], axis=-1)


def _reduction(rows: RowNode) -> Sequence[ir.Value] | None:
    axes = _constants(rows, 1)
    kept = rows.node.attributes.get_int("keepdims", 1) == 1
    if rows.bases[0] is None or axes is None or len(axes) != 1 or not rows.is_last(axes[0]) or not kept:
        return None
    return _same(rows, [rows.bases[0], [-1]])


def _matmul(rows: RowNode) -> Sequence[ir.Value] | None:
    weight = rows.node.inputs[1]
    if rows.bases[0] is None or weight is None or not is_constant(weight) or len(static_shape(weight)) != 2:
        return None
    return _same(rows, [rows.bases[0], weight])


def _slice(rows: RowNode) -> Sequence[ir.Value] | None:
    starts, ends, axes, steps = (_constants(rows, index) for index in (1, 2, 3, 4))
    if rows.bases[0] is None or starts is None or ends is None or axes is None or len(axes) != 1:
        return None
    axis = 2 if rows.is_last(axes[0]) else 1
    if axis == 1 and not rows.is_tokens(axes[0]):
        return None
    return _same(rows, [rows.bases[0], starts, ends, [axis], [1] if steps is None else steps])


def _gather(rows: RowNode) -> Sequence[ir.Value] | None:
    node, base, indices = rows.node, rows.bases[0], rows.node.inputs[1]
    if base is None or indices is None or indices.const_value is None:
        return None
    axis, rank = node.attributes.get_int("axis", 0), len(static_shape(indices))
    if rank == 1 and (rows.is_last(axis) or rows.is_tokens(axis)):
        return _same(rows, [base, indices], axis=2 if rows.is_last(axis) else 1)
    shape = static_shape(node.outputs[0])
    if rank or not rows.is_tokens(axis) or shape != (rows.batch, shape[-1]):
        return None
    one = rows.b.op("Gather", base, indices, axis=1)
    one.shape = ir.Shape(shape)
    return [one]


def _concat(rows: RowNode) -> Sequence[ir.Value] | None:
    axis = rows.node.attributes.get_int("axis", 0)
    if rows.is_last(axis):
        return _same(rows, list(rows.bases), axis=2) if None not in rows.bases else None
    if not rows.is_tokens(axis):
        return None
    inputs = []
    for value, base in zip(rows.node.inputs, rows.bases, strict=True):
        assert value is not None
        if base is None and len(rows.shape) == 1:
            base = rows.b.op("Unsqueeze", value, [0])
        elif base is None and rows.token_axis == 0:
            base = rows.b.op("Transpose", value, perm=[1, 0, 2])
        if base is None:
            return None
        if base.shape is None:
            *lead, channels = static_shape(value)
            base.shape, base.type = ir.Shape([rows.batch, int(np.prod(lead)) // rows.batch, channels]), value.type
        inputs.append(base)
    return _same(rows, inputs, axis=1)


def _constants(rows: RowNode, index: int) -> list[int] | None:
    value = rows.node.inputs[index] if index < len(rows.node.inputs) else None
    if value is None or value.const_value is None:
        return None
    found = constant_of(rows.node, index)
    return None if found is None else [int(number) for number in found]


_OTHERS: dict[str, Callable[[RowNode], Sequence[ir.Value] | None]] = {
    "MatMul": _matmul,
    "Slice": _slice,
    "Gather": _gather,
    "Concat": _concat,
}
