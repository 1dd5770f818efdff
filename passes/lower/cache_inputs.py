"""How a decoder in canonical form reads its caches: by one Concat each, and by their length."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from lmmprune.passes.graph.refusals import Refused

Pairs = Sequence[tuple[str, str]]
"""Names of the inputs that are the keys and the values of each layer, ``[B,Hk,P,D]``."""


def check_cuts(past: Pairs, removed: Sequence[int], capacity: int | None) -> None:
    """Refuse another number of cuts than of layers, and a cache without room behind them.

    Args:
        past: Of each layer.
        removed: How many tokens are gone when the sequence reaches each layer.
        capacity: Tokens that the layers before any cut have room for; None: any number.

    Raises:
        Refused: It is so.
    """
    if len(past) != len(removed):
        raise Refused(f"a cache of {len(past)} layers, cuts before {len(removed)}: expected as many")
    if capacity is not None and capacity <= max(removed):
        raise Refused(f"a cache of {capacity} tokens is shorter than the {max(removed)} that cuts remove")


def join_of(past: ir.Value) -> ir.Node:
    """Return the Concat that puts new keys or values behind a cache.

    Raises:
        Refused: There is none, or there are several.
    """
    found = [node for node, place in past.uses() if node.op_type == "Concat" and place == 0 and len(node.inputs) == 2]
    if len(found) != 1:
        raise Refused(f"'{past.name}' is joined with the new tokens by {len(found)} Concats, expected one")
    return found[0]


def counts_of(past: ir.Value) -> list[ir.Value]:
    """Return what counts a cache's tokens by its shape, ``[1]``.

    Raises:
        Refused: Something reads more of its shape.
    """
    found = []
    for node, _ in past.uses():
        if node.op_type == "Shape":
            if (node.attributes.get_int("start", 0), node.attributes.get_int("end", 4)) != (2, 3):
                raise Refused(f"'{node.name}' reads more of the shape of '{past.name}' than its length")
            found.append(node.outputs[0])
    return found


def with_length(past: ir.Value, length: int) -> ir.Shape:
    """Return a cache's shape with a length."""
    assert past.shape is not None
    batch, heads, _, width = past.shape
    return ir.Shape([batch, heads, length, width])
