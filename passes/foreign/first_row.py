"""Which outputs of a tower read nothing but the token at row 0."""

from __future__ import annotations

import onnx_ir as ir


def tokens_of(value: ir.Value) -> int | None:
    """Return T of ``[B,T,C]``, None for anything else."""
    shape = value.shape
    return None if shape is None or len(shape) != 3 or not isinstance(shape[1], int) else shape[1]


def reads_first_row(output: ir.Value, tokens: int) -> bool:
    """Return whether an output depends on the tokens by row 0 alone."""
    if tokens_of(output) == tokens:
        return False
    work, seen = [output.producer()], set()
    while work:
        node = work.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for value in node.inputs:
            if value is None or value.is_initializer():
                continue
            if tokens_of(value) != tokens:
                work.append(value.producer())
            elif not _takes_first_row(node):
                return False
    return True


def _takes_first_row(node: ir.Node) -> bool:
    """Return whether a node takes row 0 of axis 1 and nothing else."""

    def constant(index: int) -> list[int] | None:
        value = node.inputs[index] if index < len(node.inputs) else None
        return None if value is None or value.const_value is None else value.const_value.numpy().ravel().tolist()

    if node.op_type == "Gather":
        return node.attributes.get_int("axis", 0) == 1 and constant(1) == [0]
    if node.op_type == "Slice":
        return (constant(1), constant(2), constant(3)) == ([0], [1], [1])
    return False
