"""Follow shapes, ranges and slice bounds back to what they are computed from."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

# Inputs that say how large something is or where it is cut: operator -> indices.
_SHAPES = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Slice": (1, 2, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
}
# What TensorRT computes on shape tensors (doc: IShapeLayer and the layers that take shape tensors; arithmetic, choices
# and moves of integers).
_ON_SHAPES = {
    *("Abs", "Add", "And", "Cast", "Ceil", "Concat", "Div", "Equal", "Expand", "Floor", "Gather", "Greater"),
    *("GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Range"),
    *("ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where"),
}


def read_as_shapes(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the inputs of a node that TensorRT must know before it runs."""
    for index in _SHAPES.get(node.op_type, ()):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None:
            yield value


def source_of_values(value: ir.Value) -> str | None:
    """Return the operator or graph input whose values a shape depends on; None if only on shapes and constants."""
    seen: set[ir.Value] = set()
    work = [value]
    while work:
        current = work.pop()
        if current in seen or current.is_initializer():
            continue
        seen.add(current)
        node = current.producer()
        if node is None:
            return f"the input '{current.name}'"
        if node.op_type in ("Shape", "Size", "Constant"):
            continue
        if node.op_type not in _ON_SHAPES:
            return f"'{node.name or node.outputs[0].name}' ({node.op_type})"
        work.extend(entry for entry in node.inputs if entry is not None)
    return None
