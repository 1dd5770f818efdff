"""Write Gemm as MatMul and Add."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from lmmprune.passes.lower.lower_node import Lowering, LowerOperator, attribute


@dataclass(frozen=True, kw_only=True)
class LowerGemm(LowerOperator):
    """Write ``Gemm`` as what it stands for: other than that, a product of rows may have more than two axes.

    Before: ``Gemm(x [N,C], w, bias, alpha, beta, transA, transB)``
    After: ``Add(Mul(MatMul(x, Transpose(w)), alpha), Mul(bias, beta))``, factors of one left out
    """

    op_type: ClassVar[str] = "Gemm"

    def rewriter(self) -> Callable[[ir.Graph, Lowering], None]:
        """Return what replaces one node."""
        return _lower


def _lower(graph: ir.Graph, new: Lowering) -> None:
    b, node = new.b, new.node
    left, right = (
        b.op("Transpose", new.input(index), perm=[1, 0]) if attribute(node, name, 0) else new.input(index)
        for index, name in ((0, "transA"), (1, "transB"))
    )
    value = _times(new, b.op("MatMul", left, right), attribute(node, "alpha", 1.0))
    if (bias := new.given(2)) is not None:
        value = b.op("Add", value, _times(new, bias, attribute(node, "beta", 1.0)))
    new.replace(graph, {0: value})


def _times(new: Lowering, value: ir.Value, factor: float) -> ir.Value:
    return value if factor == 1 else new.b.op("Mul", value, new.number(factor))
