"""How the heads of an attention lie in the values that they come from and go to, and how canonical form writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from lmmprune.passes.foreign.layouts import Moved, Order, every_place, order_of_rows
from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.graph.moves import Array, is_move, moved
from lmmprune.passes.graph.shapes import static_shape

Shape = tuple[int, int, int, int]
"""B, H, T, D."""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Queries, keys or values ``[B,H,T,D]`` as a part of what they come from.

    Attributes:
        source: Where they come from: one row for each token of each picture, or ``[B,H,T,D]`` itself.
        shape: B, H, T, D.
        parts: Where the source has further axes in front: the places on those axes that hold them.
        order: Order of the source's rows; None: the source is ``[B,H,T,D]``.
        columns: ``[H,D]``, which number of its row each entry is.
        factor: What they were multiplied with on the way.
    """

    source: ir.Value
    shape: Shape
    parts: tuple[int, ...] = ()
    order: Order | None
    columns: Array
    factor: float


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Where the heads of an attention's output stand side by side.

    Attributes:
        value: One row for each token of each picture, of H*D numbers.
        order: Order of its rows.
        columns: ``[H*D]``, which of the numbers h*D + d each is.
    """

    value: ir.Value
    order: Order
    columns: Array


def find_heads(side: Moved) -> Heads | None:
    """Read off where queries, keys or values come from; None if their tokens don't keep their order.

    Args:
        side: Its places are ``[B,H,T,D]``.
    """
    return _find(side, side.places, ())


def _find(side: Moved, places: Array, parts: tuple[int, ...]) -> Heads | None:
    shape = static_shape(side.source)[len(parts) :]
    batch, heads, tokens, width = places.shape
    size: Shape = (batch, heads, tokens, width)
    every = every_place((heads, width))
    itself = np.array_equal(places, every_place(size)) and places.size == np.prod(shape)
    if not (itself and shape == size):
        for axis in range(len(shape) - 1, 0, -1):
            if np.prod(shape[:axis]) != batch * tokens:
                continue
            rows, columns = np.divmod(places, int(np.prod(shape[axis:])))
            if (rows != rows[:, :1, :, :1]).any() or (columns != columns[:1, :, :1]).any():
                continue
            if (order := order_of_rows(rows[:, 0, :, 0], batch, tokens)) is not None:
                found = columns[0, :, 0]
                return Heads(
                    source=side.source, shape=size, parts=parts, order=order, columns=found, factor=side.factor
                )
    if itself:
        return Heads(source=side.source, shape=size, parts=parts, order=None, columns=every, factor=side.factor)
    # All in one of several blocks, such as [3,B,H,T,D].
    block = int(np.prod(shape[1:]))
    part = int(places.min()) // block
    if len(shape) < 2 or shape[0] < 2 or places.max() // block != part:
        return None
    return _find(side, places - part * block, (*parts, part))


def write_heads(b: Builder, side: Heads) -> ir.Value:
    """Write ``[B,H,T,D]``: the source's rows, picture by picture, then ``Transpose(Reshape(., [0,0,H,D]))``."""
    value = side.source
    for op_type, constants, attributes in _steps(side):
        value = b.op(op_type, value, *constants, **attributes)
    return value


def is_written(side: Heads, value: ir.Value | None) -> bool:
    """Return whether a value is made of a source by the operators that ``write_heads`` writes."""
    found: list[str] = []
    while value is not None and value is not side.source:
        node = value.producer()
        if node is None:
            return False
        found.insert(0, node.op_type)
        value = node.inputs[0]
    return side.factor == 1 and found == [op_type for op_type, _, _ in _steps(side)]


_Step = tuple[str, list[Any], dict[str, Any]]
"""An operator, its inputs behind the first, and its attributes."""


def _steps(side: Heads) -> list[_Step]:
    batch, heads, tokens, width = side.shape
    shape = static_shape(side.source)[len(side.parts) :]
    steps: list[_Step] = [("Gather", [np.int64(part)], {"axis": 0}) for part in side.parts]
    if side.order is None:
        if shape == side.shape:
            return steps
        # Without the tokens' number, where there is a way: it may change.
        alone = shape == side.shape[1:]
        return [*steps, ("Unsqueeze", [[0]], {}) if alone else ("Reshape", [list(side.shape)], {})]
    channels = int(np.prod(shape)) // (batch * tokens)
    columns = side.columns.ravel()
    first, whole = int(columns[0]), len(columns) == channels
    aligned = np.array_equal(columns, np.arange(first, first + len(columns)))
    turned: _Step = ("Transpose", [], {"perm": [0, 2, 1, 3]})
    if side.order == "BT" and aligned and whole and shape == (batch, tokens, heads, width):
        return [*steps, turned]
    rows = (batch, tokens) if side.order == "BT" else (tokens, batch)
    if shape != (*rows, channels):
        steps.append(("Reshape", [[*rows, channels]], {}))
    if side.order == "TB":
        steps.append(("Transpose", [], {"perm": [1, 0, 2]}))
    if not aligned:
        steps.append(("Gather", [columns], {"axis": 2}))
    elif not whole:
        steps.append(("Slice", [[first], [first + len(columns)], [2]], {}))
    return [*steps, ("Reshape", [[0, 0, heads, width]], {}), turned]


def find_join(mixed: ir.Value, size: Shape) -> tuple[Joined | None, ir.Value]:
    """Follow an attention's output forward to where its heads stand side by side.

    Args:
        mixed: The output, whose entries in order are ``[B,H,T,D]``; or ``[B,T,H*D]``.
        size: B, H, T, D.

    Returns:
        That place, or None; and the last value that was looked at.
    """
    batch, heads, tokens, width = size
    value, shape = mixed, static_shape(mixed)
    places = every_place(size)
    if shape == (batch, tokens, heads * width) and len(shape) != len(size):
        places = places.transpose(0, 2, 1, 3)
    places = places.reshape(shape)
    while (found := _side_by_side(value, places, size)) is None:
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            return None, value
        node, index = uses[0]
        if index != 0 or not is_move(node) or len(node.outputs) != 1:
            return None, value
        value = node.outputs[0]
        places = moved(value, places)
    return found, value


def _side_by_side(value: ir.Value, places: Array, size: Shape) -> Joined | None:
    batch, heads, tokens, width = size
    if places.ndim not in (2, 3) or places.shape[-1] != heads * width or places.size != np.prod(size):
        return None
    b, h, t, d = np.unravel_index(places.reshape(batch * tokens, heads * width), size)
    rows, columns = b * tokens + t, h * width + d
    if (rows != rows[:, :1]).any() or (columns != columns[:1]).any():
        return None
    order: Order = "BT"
    if not np.array_equal(rows[:, 0], np.arange(batch * tokens)):
        order = "TB"
        if not np.array_equal(rows[:, 0], every_place((batch, tokens)).T.ravel()):
            return None
    return Joined(value=value, order=order, columns=columns[0])


def is_joined(mixed: ir.Value, joined: Joined) -> bool:
    """Return whether an output ``[B,H,T,D]`` is joined by the operators that ``write_join`` writes first."""
    found: list[str] = []
    value = mixed
    while value is not joined.value:
        node = next(iter(value.uses()))[0]
        found.append(node.op_type)
        value = node.outputs[0]
    return found == ["Transpose", "Reshape"] and joined.order == "BT" and len(static_shape(value)) == 3


def write_join(b: Builder, mixed: ir.Value, joined: Joined, size: Shape) -> ir.Value:
    """Write what ``joined`` holds from ``mixed [B,H,T,D]``: ``Reshape(Transpose(.), [0,0,H*D])``, then its order."""
    batch, heads, tokens, width = size
    shape = static_shape(joined.value)
    dtype = joined.value.type

    def sized(value: ir.Value, *dims: int) -> ir.Value:
        # The next attention may begin where this one ends.
        value.shape, value.type = ir.Shape(dims), dtype
        return value

    sized(mixed, *size)
    turned = sized(b.op("Transpose", mixed, perm=[0, 2, 1, 3]), batch, tokens, heads, width)
    value = sized(b.op("Reshape", turned, [0, 0, heads * width]), batch, tokens, heads * width)
    if not np.array_equal(joined.columns, np.arange(heads * width)):
        value = sized(b.op("Gather", value, joined.columns, axis=2), batch, tokens, heads * width)
    if joined.order == "TB":
        value = sized(b.op("Transpose", value, perm=[1, 0, 2]), tokens, batch, heads * width)
    if static_shape(value) != shape:
        value = sized(b.op("Reshape", value, list(shape)), *shape)
    return value
