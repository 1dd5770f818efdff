"""Give the queries and keys of an attention the width of its values, for kernels that take one width alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken
from lmmprune.passes.graph.shapes import infer_shapes
from lmmprune.passes.lower.lower_node import HALF_OF, Lowering, attribute, nodes_of, number


@dataclass(frozen=True, kw_only=True)
class EqualHeadWidths(GraphPass):
    """Widen queries and keys by zeros where the values of an ``Attention`` are wider.

    Before: ``Attention(q [B,H,S,D], k [B,Hk,T,D], v [B,Hk,T,E])``, E > D
    After: ``Attention([q | 0], [k | 0], v)``, all three E wide, with the scale ``1 / sqrt(D)`` written out where it
    wasn't: zeros add nothing to the products.

    TensorRT takes no others (seen in TensorRT-RTX 1.7.1: "Key and Value must have the same shape").
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        found = _unequal(model)
        for node in found:
            _widen(model.graph, Lowering(node))
        if found:
            infer_shapes(model)
        return ir.passes.PassResult(model, modified=bool(found))

    def ensures(self, model: ir.Model) -> None:
        """Check that none is left."""
        for node in _unequal(model):
            raise Broken(f"the values of '{node.name}' are still wider than its keys")


def _unequal(model: ir.Model) -> list[ir.Node]:
    # With [B,S,H*D] inputs the heads are split by the node, all alike.
    return [node for node in nodes_of(model, "Attention") if len({_width(node.inputs[index]) for index in (0, 2)}) > 1]


def _width(value: ir.Value | None) -> int | ir.SymbolicDim | None:
    shape = None if value is None else value.shape
    return shape[3] if shape is not None and len(shape) == 4 else None


def _widen(graph: ir.Graph, new: Lowering) -> None:
    b, node = new.b.aside("widths"), new.node
    width, wanted = number(new.input(0), 3), number(new.input(2), 3)
    nothing = np.zeros((1, 1, 1, wanted - width), HALF_OF.get(new.dtype, np.float32))
    for index in (0, 1):
        value = new.input(index)
        beside = b.op("Expand", nothing, [*(number(value, axis) for axis in range(3)), wanted - width])
        node.replace_input_with(index, b.op("Concat", value, beside, axis=3))
    node.attributes["scale"] = ir.AttrFloat32("scale", attribute(node, "scale", 1 / math.sqrt(width)))
    b.insert_before(graph, node)
