"""Tokens that are mixtures of patches: a constant matrix times all patches of a picture."""

from __future__ import annotations

import onnx_ir as ir

from lmmprune.passes.find.groups import is_move
from lmmprune.passes.graph import moves


def mixtures(features: ir.Value) -> ir.Value | None:
    """Return the product ``[B*tiles,n,C]`` that features ``[B,N,C]`` are the rows of; None where they are another's.

    The product's left side has to be a constant: ``[n,patches]``.
    """
    value = features
    while (node := value.producer()) is not None and is_move(node):
        value = moves.moved_by(value)
    if node is None or node.op_type != "MatMul" or (left := node.inputs[0]) is None:
        return None
    return value if left.const_value is not None else None
