"""Which patches make a visual token: one each, or the block that a pixel shuffle or a merger puts together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from lmmprune.passes.refusals import Refused
from lmmprune.passes.shapes import static_shape


def is_move(node: ir.Node) -> bool:
    """Return whether a node only moves numbers, to places that are written in the graph."""
    return node.op_type in _MOVES and all(
        value is None or value.const_value is not None for value in list(node.inputs)[1:]
    )


def trace_groups(tokens: ir.Value) -> tuple[ir.Value, np.ndarray]:
    """Follow tokens back through the operators that only move numbers, and see whose numbers they hold.

    Args:
        tokens: ``[B,N,g*C]``, what enters the projector.

    Returns:
        The encoder's output ``[B*tiles,T,C]``, and its rows that make each token, ``[N,g]`` int64, ascending; the rows
        of a picture's tiles are counted one after the other.

    Raises:
        Refused: A token holds a part of a row, another token's row, or rows of several pictures.
    """
    moves, value = [], tokens
    while (node := value.producer()) is not None and is_move(node):
        moves.append(node)
        value = _data(node)
    images, rows, channels = static_shape(value)
    # Every number is replaced by the row that it stands in; what arrives tells where each token is from.
    numbers: np.ndarray = np.arange(images * rows, dtype=np.int64).reshape(images, rows, 1)
    found = np.broadcast_to(numbers, (images, rows, channels))
    for node in reversed(moves):
        found = _MOVES[node.op_type](found, node)
    mine = np.sort(found[0], axis=1)
    # A token of whole rows holds each of its rows' numbers once per channel.
    members = mine[:, ::channels]
    whole = np.array_equal(np.repeat(members, channels, axis=1), mine)
    pictures = np.arange(len(found)).reshape(-1, 1, 1) * (images // len(found) * rows)
    alike = np.array_equal(found, found[:1] + pictures)
    if not whole or not alike or len(np.unique(members)) < members.size:
        raise Refused(
            f"'{tokens.name}' isn't made of whole rows of '{value.name}', each in one token of its picture: expected"
            " the Slice that drops CLS, or a pixel shuffle"
        )
    return value, members


def _data(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _constant(node: ir.Node, index: int) -> np.ndarray:
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _reshape(x: np.ndarray, node: ir.Node) -> np.ndarray:
    return x.reshape(static_shape(node.outputs[0]))


def _transpose(x: np.ndarray, node: ir.Node) -> np.ndarray:
    return x.transpose(node.attributes["perm"].as_ints() if "perm" in node.attributes else None)


def _slice(x: np.ndarray, node: ir.Node) -> np.ndarray:
    starts, ends = _constant(node, 1), _constant(node, 2)
    given = [_constant(node, index) if index < len(node.inputs) and node.inputs[index] else None for index in (3, 4)]
    axes = range(len(starts)) if given[0] is None else given[0]
    steps = [1] * len(starts) if given[1] is None else given[1]
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        places: list[slice] = [slice(None)] * x.ndim
        # Backwards an end below the first place means "through it", which Python writes as no end.
        stop = None if step < 0 and end < -x.shape[axis] else int(end)
        places[int(axis)] = slice(int(start), stop, int(step))
        x = x[tuple(places)]
    return x


def _gather(x: np.ndarray, node: ir.Node) -> np.ndarray:
    return np.take(x, _constant(node, 1), axis=node.attributes.get_int("axis", 0))


_MOVES: dict[str, Callable[[np.ndarray, ir.Node], np.ndarray]] = {
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Slice": _slice,
    "Gather": _gather,
}
