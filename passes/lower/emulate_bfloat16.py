"""Compute a bfloat16 graph where there is no bfloat16 arithmetic: in float32, every result rounded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.passes.graph.shapes import infer_shapes

_NARROW, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT
# They name their type, and no arithmetic goes on in them.
_TYPED = {"Cast", "Constant"}


@dataclass(frozen=True, kw_only=True)
class EmulateBfloat16(GraphPass):
    """Let every operator compute in float32, and round what it gives to bfloat16.

    Before: ``y = MatMul(x, w)`` in bfloat16, which ONNX Runtime's CPU provider doesn't have
    After: ``y = Cast(MatMul(Cast(x, to=float32), Cast(w, to=float32)), to=bfloat16)``; inputs and outputs are float32

    Operators on a GPU accumulate in float32 and round once, and so does this. Kernels that fuse several operators round
    less often. Inputs are rounded first, as a caller would.
    """

    def requires(self, model: ir.Model) -> None:
        """Check that inputs aren't handed through."""
        for value in _narrow(model.graph.inputs):
            if value.is_graph_output():
                raise Refused(f"input '{value.name}' is an output, too: it can't be rounded under its name")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        infer_shapes(model)  # types, too: a file may leave them out
        graph = model.graph
        nodes = [node for node in graph if node.op_type not in _TYPED and _narrow([*node.inputs, *node.outputs])]
        results = [value for node in nodes for value in _narrow(node.outputs)]
        ends = [*_narrow(graph.inputs), *_narrow(graph.outputs)]
        if not (nodes or ends):
            return ir.passes.PassResult(model, modified=False)
        wide: dict[ir.Value, ir.Value] = {}
        for node in nodes:
            for index, value in enumerate(node.inputs):
                if value is not None and value.dtype == _NARROW:
                    if value not in wide:
                        wide[value] = _cast(graph, value, "wide", user=node)
                    node.replace_input_with(index, wide[value])
        for value in [*results, *_narrow(graph.inputs)]:
            _round(graph, value)
        for index, value in enumerate(graph.outputs):
            if value.dtype == _NARROW:
                graph.outputs[index] = _cast(graph, value, "output")
                name, value.name = value.name, f"{value.name}.bfloat16"
                graph.outputs[index].name = name
        infer_shapes(model)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check that nothing but casts and constants touches bfloat16."""
        for node in model.graph:
            if node.op_type not in _TYPED and _narrow([*node.inputs, *node.outputs]):
                raise Broken(f"'{node.name}' ({node.op_type}) still computes in bfloat16")


def _narrow(values: Iterable[ir.Value | None]) -> list[ir.Value]:
    return [value for value in values if value is not None and value.dtype == _NARROW]


def _cast(graph: ir.Graph, value: ir.Value, what: str, user: ir.Node | None = None) -> ir.Value:
    """Put a cast right behind where a value comes from; that of a weight right before its first user.

    At the front, all weights would be widened before any is used, and a large model's wouldn't fit.
    """
    name, to = f"{value.name}.{what}", _NARROW if what == "rounded" else _WIDE
    node = ir.node("Cast", [value], {"to": int(to)}, name=f"lmmprune/emulate/{name}")
    (output,) = node.outputs
    output.name, output.type, output.shape = name, ir.TensorType(to), value.shape
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, node)
    else:
        graph.insert_before(user or graph[0], node)
    return output


def _round(graph: ir.Graph, value: ir.Value) -> None:
    """Let a value be float32, and all that reads it read it rounded."""
    users = list(value.uses())
    value.type = ir.TensorType(_WIDE)
    rounded = _cast(graph, value, "rounded")
    for user, index in users:
        user.replace_input_with(index, rounded)
    if value.is_graph_output():
        graph.outputs[graph.outputs.index(value)] = rounded
        value.name, rounded.name = rounded.name, value.name
