"""Which patches make a visual token: one each, or the block that a pixel shuffle or a merger puts together."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lmmprune.passes.graph import moves
from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.graph.shapes import static_shape


def is_move(node: ir.Node) -> bool:
    """Return whether a node moves numbers to other places; a copy under another name moves none."""
    return node.op_type != "Identity" and moves.is_move(node)


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
    steps, value = [], tokens
    while (node := value.producer()) is not None and is_move(node):
        steps.append(value)
        value = moves.moved_by(value)
    if len(shape := static_shape(value)) != 3:
        raise Refused(f"'{tokens.name}' is made of '{value.name}' {shape}: expected an encoder's tokens, [B,T,C]")
    images, rows, channels = shape
    # Every number is replaced by the row that it stands in; what arrives tells where each token is from.
    numbers: np.ndarray = np.arange(images * rows, dtype=np.int64).reshape(images, rows, 1)
    found = np.broadcast_to(numbers, (images, rows, channels))
    for step in reversed(steps):
        found = moves.moved(step, found)
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
