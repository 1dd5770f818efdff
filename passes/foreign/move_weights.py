"""Compute what a graph does to the order of its weights while they are written, instead of at run time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.lazy import contiguous, is_lazy, lazy, values_of
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.moves import Array, is_move, mover
from lmmprune.passes.graph.shapes import static_shape


@dataclass(frozen=True, kw_only=True)
class MoveWeights(GraphPass):
    """Put moved, cut and joined weights in the place of the operators that move, cut and join them.

    Before: ``Split(in_proj_weight [3*C,C])``, ``Transpose``, ``MatMul``; ``Concat(q_bias, zeros, v_bias)``
    After: ``MatMul`` with three weights ``[C,C]``; one bias ``[3*C]``

    Weights bound lazily are not read.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        changed = False
        for node in list(model.graph):
            first = node.inputs[0] if node.inputs else None
            if first is None or first.dtype is None or not first.dtype.is_floating_point():
                continue
            if not _is_weight(first) or any(value.is_graph_output() for value in node.outputs):
                continue
            if is_move(node):
                made = [_moved(first, value) for value in node.outputs]
            elif node.op_type == "Concat" and all(_is_weight(value) for value in node.inputs):
                made = [_joined(node)]
            else:
                continue
            for old, new in zip(node.outputs, made, strict=True):
                model.graph.register_initializer(new)
                ir.convenience.replace_all_uses_with(old, new)
            read = [value for value in node.inputs if value is not None]
            model.graph.remove(node, safe=True)
            for value in read:
                if value.is_initializer() and not value.uses() and not value.is_graph_output():
                    model.graph.initializers.pop(str(value.name), None)
            changed = True
        return ir.passes.PassResult(model, modified=changed)


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and not value.is_graph_input()


def _moved(weight: ir.Value, value: ir.Value) -> ir.Value:
    move = mover(value)
    return _weight(value, [weight], lambda arrays: move(arrays[0]))


def _joined(node: ir.Node) -> ir.Value:
    axis, value = node.attributes.get_int("axis", 0), node.outputs[0]
    return _weight(value, [entry for entry in node.inputs if entry is not None], lambda a: np.concatenate(a, axis=axis))


def _weight(value: ir.Value, weights: list[ir.Value], change: Callable[[list[Array]], Array]) -> ir.Value:
    """Return the initializer that a value is."""
    name, shape, dtype = f"{value.name}/weight", static_shape(value), weights[0].dtype
    assert dtype is not None
    # The tensors as they are now: nobody else may need these values again.
    sources = [ir.Value(name=weight.name, const_value=weight.const_value) for weight in weights]

    def read() -> Array:
        return change([values_of(source) for source in sources])

    if any(is_lazy(source) for source in sources):
        tensor: ir.TensorProtocol = lazy(read, dtype=dtype, shape=shape, name=name)
    else:
        tensor = ir.Tensor(contiguous(read(), dtype.numpy()), dtype=dtype, name=name)
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)
