"""Write RMSNormalization as primitives, for parsers that don't know it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from lmmprune.passes.lower.lower_node import Lowering, LowerOperator, attribute, nodes_of, rank

_ANY_RANK = tuple(range(1, 9))


@dataclass(frozen=True, kw_only=True)
class LowerRmsNorm(LowerOperator):
    """Replace ``RMSNormalization`` by its formula, in the form that exports of older opsets have.

    Before: ``RMSNormalization(x, scale)``
    After: ``Mul(Cast(Div(x32, Sqrt(Add(ReduceMean(Pow(x32, 2)), epsilon)))), scale)`` with ``x32 = Cast(x, float32)``

    The statistics are float32 whatever ``stash_type`` says: in half precision squares above 65504 overflow, which
    begins at activations of 256. Div instead of Reciprocal, which onnx-tensorrt's table doesn't list.

    Reference: Zhang and Sennrich 2019, arXiv 1910.07467; ONNX operator RMSNormalization-23.
    """

    op_type: ClassVar[str] = "RMSNormalization"

    def requires(self, model: ir.Model) -> None:
        """Check that ranks are known: the axes of a mean are constants."""
        for node in nodes_of(model, "RMSNormalization"):
            assert node.inputs[0] is not None
            rank(node.inputs[0], expected=_ANY_RANK)

    def rewriter(self) -> Callable[[ir.Graph, Lowering], None]:
        """Return what replaces one node."""
        return _lower


def _lower(graph: ir.Graph, new: Lowering) -> None:
    b, node, scale = new.b, new.node, new.input(1)
    dims = rank(new.input(0), expected=_ANY_RANK)
    first = attribute(node, "axis", -1) % dims
    x = new.to_float(new.input(0))
    squares = b.op("Pow", x, b.constant(2.0))
    mean = b.op("ReduceMean", squares, list(range(first, dims)), keepdims=1)
    root = b.op("Sqrt", b.op("Add", mean, b.constant(attribute(node, "epsilon", 1e-5))))
    # The scale may have a type of its own, which is the result's.
    normed = new.back(b.op("Div", x, root), scale.dtype)
    new.replace(graph, {0: b.op("Mul", normed, scale)})
