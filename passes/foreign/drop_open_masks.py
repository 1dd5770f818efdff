"""Take masks that hide nothing out of attention: exporters write them for models that could hide something."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lmmprune.lazy import is_lazy
from lmmprune.passes.foreign.layouts import trace_moves
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.shapes import static_shape


@dataclass(frozen=True, kw_only=True)
class DropOpenMasks(GraphPass):
    """Remove constant masks under which every token sees every other, and what guards against rows without any.

    Before: ``Softmax(Add(logits, zeros))``, ``Softmax(Where(true, logits, -inf))``, ``Attention(q, k, v, true)``
    After: ``Softmax(logits)``, ``Attention(q, k, v)``

    Before: ``p = Softmax(MatMul(q, k))``, ``Where(IsNaN(p), 0, p)``   After: ``p``

    Weights bound lazily are not read.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        changed = False
        for node in list(model.graph):
            if node.op_type == "Attention":
                changed |= _drop_input(node)
            elif (same := _is_same_as(node)) is not None and not node.outputs[0].is_graph_output():
                ir.convenience.replace_all_uses_with(node.outputs[0], same)
                changed = True
        if changed:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=changed)


def _drop_input(node: ir.Node) -> bool:
    if len(node.inputs) < 4 or not (_holds(node.inputs[3], 0) or _holds(node.inputs[3], True)):
        return False
    if any(value is not None for value in list(node.inputs)[4:]):
        node.replace_input_with(3, None)
    else:
        node.resize_inputs(3)
    return True


def _is_same_as(node: ir.Node) -> ir.Value | None:
    """Return the value that a node's output equals, where the node is a mask that hides nothing."""
    inputs = list(node.inputs)
    kept: ir.Value | None = None
    if node.op_type == "Add" and _before_softmax(node):
        kept = inputs[0] if _holds(inputs[1], 0) else inputs[1] if _holds(inputs[0], 0) else None
    elif node.op_type == "Where" and _before_softmax(node):
        kept = inputs[1] if _holds(inputs[0], True) else None
    elif node.op_type == "Where":
        condition = inputs[0].producer() if inputs[0] is not None else None
        guarded = condition is not None and condition.op_type == "IsNaN" and condition.inputs[0] is inputs[2]
        kept = inputs[2] if guarded and _of_product(inputs[2]) else None
    return kept if kept is not None and static_shape(kept) == static_shape(node.outputs[0]) else None


def _before_softmax(node: ir.Node) -> bool:
    return any(use.op_type == "Softmax" for use, _ in node.outputs[0].uses())


def _of_product(value: ir.Value | None) -> bool:
    """Return whether a value is the softmax of a product, with nothing added that could be infinite."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Softmax" or node.inputs[0] is None:
        return False
    source = trace_moves(node.inputs[0]).source.producer()
    return source is not None and source.op_type == "MatMul"


def _holds(value: ir.Value | None, number: float) -> bool:
    """Return whether a constant is that number everywhere; ``True`` is told from 1."""
    if value is None or value.const_value is None or not value.is_initializer() or is_lazy(value):
        return False
    if (value.dtype == ir.DataType.BOOL) != isinstance(number, bool):
        return False
    return bool((value.const_value.numpy() == number).all())
