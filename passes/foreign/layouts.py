"""Follow a value through operators that only move its entries, and say where each entry comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from lmmprune.passes.graph.moves import Array, is_move, moved, moved_by
from lmmprune.passes.graph.shapes import static_shape

_SCALES = {"Mul", "Div"}

Order = Literal["BT", "TB"]
"""Whether the tokens of a picture follow each other in memory, or the pictures of a token."""


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A value as a rearrangement of another one, or of a part of it.

    Attributes:
        source: The value it comes from.
        factor: What it was multiplied with on the way.
        places: Of the value's shape: for each entry, its place among the flattened entries of the source.
    """

    source: ir.Value
    factor: float
    places: Array


def trace_moves(value: ir.Value, *, factors: bool = True) -> Moved:
    """Walk back from a value with static shapes through moves and constant factors.

    Args:
        value: Where to begin.
        factors: Whether to walk through factors (other than zero), too.

    Raises:
        Refused: A shape on the way isn't static.
    """
    node = value.producer()
    if node is not None and is_move(node):
        found = trace_moves(moved_by(value), factors=factors)
        return Moved(source=found.source, factor=found.factor, places=moved(value, found.places))
    if factors and node is not None and node.op_type in _SCALES and (scaled := _scaled(node)) is not None:
        inner, factor = scaled
        if static_shape(inner) == static_shape(value):
            found = trace_moves(inner)
            return Moved(source=found.source, factor=found.factor * factor, places=found.places)
    return untouched(value)


def untouched(value: ir.Value) -> Moved:
    """Return a value as its own source."""
    return Moved(source=value, factor=1.0, places=every_place(static_shape(value)))


def every_place(shape: tuple[int, ...]) -> Array:
    """Return the places of a shape's entries."""
    return np.arange(np.prod(shape, dtype=np.int64)).reshape(shape)


def order_of_rows(rows: Array, batch: int, tokens: int) -> Order | None:
    """Return the order of rows of several pictures.

    Args:
        rows: ``[B,T]``, the place of each picture's token.
        batch: B.
        tokens: T.
    """
    if np.array_equal(rows, every_place((batch, tokens))):
        return "BT"
    return "TB" if np.array_equal(rows, every_place((tokens, batch)).T) else None


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
