"""Write Gelu as primitives, for parsers that don't know it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.lower.lower_node import Lowering, LowerOperator, attribute, nodes_of


@dataclass(frozen=True, kw_only=True)
class LowerGelu(LowerOperator):
    """Replace ``Gelu`` by its formula; builders fuse the point-wise operators again.

    Before: ``Gelu(x)``
    After: ``0.5 x (1 + Erf(x / sqrt 2))``, or with ``approximate="tanh"``
    ``0.5 x (1 + Tanh(sqrt(2/pi) (x + 0.044715 x^3)))``, in the type of x (the cube as ``x * x * x``)

    Reference: Hendrycks and Gimpel 2016, arXiv 1606.08415; ONNX operator Gelu-20.
    """

    op_type: ClassVar[str] = "Gelu"

    def requires(self, model: ir.Model) -> None:
        """Check that the approximation is one of the two that ONNX defines."""
        for node in nodes_of(model, "Gelu"):
            kind = attribute(node, "approximate", "none")
            if kind not in ("none", "tanh"):
                raise Refused(f"'{node.name}' has approximate='{kind}', expected 'none' or 'tanh'")

    def rewriter(self) -> Callable[[ir.Graph, Lowering], None]:
        """Return what replaces one node."""
        return _lower


def _lower(graph: ir.Graph, new: Lowering) -> None:
    b, x = new.b, new.input(0)
    if attribute(new.node, "approximate", "none") == "tanh":
        # In this order nothing overflows in half precision before the tanh is flat anyway (|x| < 40).
        cube = b.op("Mul", b.op("Mul", b.op("Mul", x, new.number(0.044715)), x), x)
        inner = b.op("Mul", b.op("Add", x, cube), new.number(math.sqrt(2 / math.pi)))
        step = b.op("Tanh", inner)
    else:
        step = b.op("Erf", b.op("Mul", x, new.number(math.sqrt(0.5))))
    half = b.op("Mul", x, new.number(0.5))
    new.replace(graph, {0: b.op("Mul", half, b.op("Add", step, new.number(1.0)))})
