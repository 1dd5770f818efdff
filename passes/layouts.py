"""Follow a value through operators that only move its entries, and say where each entry comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from lmmprune.passes.shapes import static_shape

Array = np.ndarray[Any, Any]

_MOVES = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
_SCALES = {"Mul", "Div"}


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A value as a rearrangement of another one.

    Attributes:
        source: The value it comes from.
        factor: What it was multiplied with on the way.
        places: Of the value's shape: for each entry, its place among the flattened entries of the source.
    """

    source: ir.Value
    factor: float
    places: Array


def trace_moves(value: ir.Value, *, factors: bool = True) -> Moved:
    """Walk back from a value with static shapes through reshapes, transpositions and constant factors.

    Args:
        value: Where to begin.
        factors: Whether to walk through factors (other than zero), too.

    Raises:
        Refused: A shape on the way isn't static.
    """
    node = value.producer()
    if node is not None and node.op_type in _MOVES:
        found = trace_moves(_input(node, 0), factors=factors)
        return Moved(source=found.source, factor=found.factor, places=move(node, found.places))
    if factors and node is not None and node.op_type in _SCALES and (scaled := _scaled(node)) is not None:
        inner, factor = scaled
        if static_shape(inner) == static_shape(value):
            found = trace_moves(inner)
            return Moved(source=found.source, factor=found.factor * factor, places=found.places)
    shape = static_shape(value)
    return Moved(source=value, factor=1.0, places=np.arange(np.prod(shape)).reshape(shape))


def is_move(node: ir.Node) -> bool:
    """Return whether a node only rearranges its first input."""
    return node.op_type in _MOVES


def move(node: ir.Node, places: Array) -> Array:
    """Rearrange as a node does; whatever isn't a transposition keeps the order of the flattened entries."""
    if node.op_type == "Transpose":
        perm = node.attributes.get("perm")
        return places.transpose(None if perm is None else tuple(perm.as_ints()))
    return places.reshape(static_shape(node.outputs[0]))


def scalar(value: ir.Value | None) -> float | None:
    """Return a constant of one entry as a number, None for anything else."""
    if value is None or value.const_value is None or value.is_graph_input() or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(()))


def _scaled(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Return what a node multiplies by a constant, and the constant."""
    left, right = node.inputs
    if left is not None and (factor := scalar(right)):
        return left, factor if node.op_type == "Mul" else 1 / factor
    if right is not None and node.op_type == "Mul" and (factor := scalar(left)):
        return right, factor
    return None


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value
