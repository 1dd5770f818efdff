"""Recognise the mask by which a query sees the keys up to its own."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir


def is_causal(mask: ir.Value, caches: Collection[ir.Value]) -> bool:
    """Say whether a mask of queries ``i < S`` and keys ``j < P + S`` is ``j <= i + P``.

    Args:
        mask: Boolean, ``[S,P+S]`` behind axes of 1, as torch's exporter and our cuts write it.
        caches: Any of these tells P by its axis 2, ``[B,H,P,D]``.
    """
    compared = _behind(mask, "Expand", "Unsqueeze")
    if compared is None or compared.op_type != "LessOrEqual":
        return False
    keys, queries = (_behind(value, "Unsqueeze") for value in compared.inputs)
    if keys is None or queries is None or keys.op_type != "Range" or queries.op_type != "Add":
        return False
    for rows, first in (queries.inputs, reversed(queries.inputs)):
        counted = _producer(rows)
        if counted is not None and counted.op_type == "Range" and _is_length(first, caches):
            seq = counted.inputs[1]
            return _from_zero(counted) and _from_zero(keys) and _is_total(keys.inputs[1], seq, caches)
    return False


def _is_total(value: ir.Value | None, seq: ir.Value | None, caches: Collection[ir.Value]) -> bool:
    """Say whether a number is P + S."""
    node = _producer(value)
    if node is None or node.op_type != "Add":
        return False
    one, other = node.inputs
    return (other is seq and _is_length(one, caches)) or (one is seq and _is_length(other, caches))


def _is_length(value: ir.Value | None, caches: Collection[ir.Value]) -> bool:
    """Say whether a number is P."""
    node = _behind(value, "Squeeze")
    if node is None or node.op_type != "Shape" or node.inputs[0] not in caches:
        return False
    return (node.attributes.get_int("start", 0), node.attributes.get_int("end", 4)) == (2, 3)


def _from_zero(node: ir.Node) -> bool:
    """Say whether a Range counts 0, 1, 2, ..."""
    first, _, step = (None if value is None else ir.convenience.get_const_tensor(value) for value in node.inputs)
    return first is not None and step is not None and first.numpy() == 0 and step.numpy() == 1


def _behind(value: ir.Value | None, *skipped: str) -> ir.Node | None:
    """Return the node that makes a value, looking through some that only shape it."""
    node = _producer(value)
    while node is not None and node.op_type in skipped:
        node = _producer(node.inputs[0])
    return node


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()
