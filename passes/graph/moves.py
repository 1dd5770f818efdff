"""The operators that only move numbers, to places that are written in the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.graph.shapes import static_shape

Array = np.ndarray[Any, Any]


def is_move(node: ir.Node) -> bool:
    """Return whether a node only moves the numbers of its first input, to places that are known."""
    return (
        node.domain in ("", "ai.onnx")
        and node.op_type in _MOVES
        and all(value is None or value.const_value is not None for value in list(node.inputs)[1:])
    )


def mover(value: ir.Value) -> Callable[[Array], Array]:
    """Return what moves numbers as the node that makes a value moves those of its first input.

    Args:
        value: What the node makes; a Split makes several.

    Returns:
        A function that outlives the node. It takes as many numbers as the node's first input has entries, in its shape.
    """
    return _MOVES[_node(value).op_type](value)


def moved(value: ir.Value, numbers: Array) -> Array:
    """Return the numbers that a value holds, given those that its node moves.

    Raises:
        Refused: The node can't do that to its input.
    """
    try:
        return mover(value)(numbers)
    except (IndexError, ValueError) as error:
        node = _node(value)
        raise Refused(
            f"'{node.name}' ({node.op_type}) can't make '{value.name}' {value.shape} of {numbers.shape}: expected"
            f" a graph that can be computed ({error}); export it again"
        ) from error


def moved_by(value: ir.Value) -> ir.Value:
    """Return what the node that makes a value moves."""
    source = _node(value).inputs[0]
    assert source is not None
    return source


def constant_of(node: ir.Node, index: int) -> Array | None:
    """Return an input of a node that is a constant; None if it isn't given."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    assert value.const_value is not None
    return value.const_value.numpy()


def _node(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _reshape(value: ir.Value) -> Callable[[Array], Array]:
    shape = static_shape(value)
    return lambda x: x.reshape(shape)


def _transpose(value: ir.Value) -> Callable[[Array], Array]:
    perm = _node(value).attributes.get("perm")
    axes = None if perm is None else tuple(perm.as_ints())
    return lambda x: x.transpose(axes)


def _slice(value: ir.Value) -> Callable[[Array], Array]:
    node = _node(value)
    starts, ends, axes, steps = (constant_of(node, index) for index in (1, 2, 3, 4))
    assert starts is not None
    assert ends is not None
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), np.int64) if steps is None else steps

    def sliced(x: Array) -> Array:
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            places: list[slice] = [slice(None)] * x.ndim
            # Backwards an end below the first place means "through it", which Python writes as no end.
            stop = None if step < 0 and end < -x.shape[axis] else int(end)
            places[int(axis)] = slice(int(start), stop, int(step))
            x = x[tuple(places)]
        return x

    return sliced


def _gather(value: ir.Value) -> Callable[[Array], Array]:
    node = _node(value)
    indices, axis = constant_of(node, 1), node.attributes.get_int("axis", 0)
    assert indices is not None
    return lambda x: np.take(x, indices, axis=axis)


def _split(value: ir.Value) -> Callable[[Array], Array]:
    node = _node(value)
    axis, count, index = node.attributes.get_int("axis", 0), len(node.outputs), list(node.outputs).index(value)
    sizes, parts = constant_of(node, 1), node.attributes.get_int("num_outputs", count)

    def part(x: Array) -> Array:
        # Without sizes all parts but the last are as large as each other.
        ends = np.arange(1, count) * -(-x.shape[axis] // parts) if sizes is None else np.cumsum(sizes)[:-1]
        return np.split(x, ends, axis=axis)[index]

    return part


_MOVES: dict[str, Callable[[ir.Value], Callable[[Array], Array]]] = {
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Flatten": _reshape,
    "Identity": lambda value: lambda x: x,
    "Transpose": _transpose,
    "Slice": _slice,
    "Gather": _gather,
    "Split": _split,
}
