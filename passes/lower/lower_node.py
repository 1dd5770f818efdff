"""What the lowering passes share: writing primitives in the place of one node, in that node's floating-point type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from lmmprune.names import REPLACES
from lmmprune.passes.graph.builder import SCORE, Builder
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.passes.graph.shapes import infer_shapes
from lmmprune.passes.lower.cast_float import HALF

FLOAT = int(ir.DataType.FLOAT)
HALF_OF = {kind: array for kind, array in HALF.values()}
"""Half-precision type -> that of its arrays."""


class Lowering:
    """The nodes that will stand for one node; they carry its name, and its mark if it is part of a score."""

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        name = str(node.name or node.outputs[0].name)
        self.b = Builder(f"lower/{name}", score=SCORE in node.metadata_props, about={REPLACES: name})

    @property
    def dtype(self) -> ir.DataType:
        """Floating-point type of the node's first input."""
        return self.input(0).dtype or ir.DataType.FLOAT

    def given(self, index: int) -> ir.Value | None:
        """Return an optional input, None if it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def input(self, index: int) -> ir.Value:
        """Return an input that the operator can't do without."""
        value = self.given(index)
        assert value is not None
        return value

    def used(self, index: int) -> bool:
        """Say whether an optional output is read by anything."""
        outputs = self.node.outputs
        return index < len(outputs) and bool(outputs[index].uses() or outputs[index].is_graph_output())

    def number(self, data: float) -> ir.Value:
        """Write a constant of the node's type."""
        return self.b.constant(np.asarray(data, HALF_OF.get(self.dtype, np.float32)))

    def to_float(self, value: ir.Value, dtype: ir.DataType | None = None) -> ir.Value:
        """Cast to float32 where the value (of the node's type unless given) isn't."""
        return value if (dtype or self.dtype) == ir.DataType.FLOAT else self.b.op("Cast", value, to=FLOAT)

    def back(self, value: ir.Value, dtype: ir.DataType | None = None) -> ir.Value:
        """Cast from float32 to the node's type, or another."""
        wanted = dtype or self.dtype
        return value if wanted == ir.DataType.FLOAT else self.b.op("Cast", value, to=int(wanted))

    def replace(self, graph: ir.Graph, outputs: Mapping[int, ir.Value]) -> None:
        """Put what was written in the node's place; its outputs keep their names, types and shapes."""
        self.b.insert_after(graph, self.node)
        for index, new in outputs.items():
            old = self.node.outputs[index]
            new.type, new.shape = old.type, old.shape
            new.name, old.name = old.name, None
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove(self.node, safe=True)


class LowerOperator(GraphPass):
    """A pass that writes every node of one standard operator as primitives; subclasses say which, and how."""

    op_type: ClassVar[str]

    def rewriter(self) -> Callable[[ir.Graph, Lowering], None]:
        """Return what replaces one node; called once per graph, so it may keep what its nodes share."""
        raise NotImplementedError

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        found, rewrite = nodes_of(model, self.op_type), self.rewriter()
        for node in found:
            rewrite(model.graph, Lowering(node))
        if found:
            infer_shapes(model)
        return ir.passes.PassResult(model, modified=bool(found))

    def ensures(self, model: ir.Model) -> None:
        """Check that none is left."""
        for node in nodes_of(model, self.op_type):
            raise Broken(f"'{node.name}' is still of type {self.op_type}")


def nodes_of(model: ir.Model, op_type: str) -> list[ir.Node]:
    """Return the nodes of a standard operator."""
    return [node for node in model.graph if node.op_type == op_type and node.domain in ("", "ai.onnx")]


def rank(value: ir.Value, *, expected: tuple[int, ...]) -> int:
    """Return a value's rank.

    Raises:
        Refused: It is unknown, or not one of those expected.
    """
    found = None if value.shape is None else len(value.shape)
    if found not in expected:
        wanted = " or ".join(map(str, expected))
        raise Refused(f"'{value.name}' has shape {value.shape}, expected rank {wanted}: infer the shapes first")
    return found


def number(value: ir.Value, axis: int) -> int:
    """Return a dimension that must be known.

    Raises:
        Refused: It isn't a number.
    """
    dim = None if value.shape is None else value.shape[axis]
    if not isinstance(dim, int):
        raise Refused(
            f"'{value.name}' has shape {value.shape}, expected a number on axis {axis}: freeze that dimension"
        )
    return dim


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Return an attribute's value, or what the operator takes without it."""
    found = node.attributes.get(name)
    return default if found is None else found.value
