"""Count floating-point operations from the shapes of a graph: 1 multiply-accumulate is 2 FLOPs."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping

import onnx_ir as ir

from lmmprune.passes.graph.refusals import Refused

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def count_flops(model: ir.Model, dims: Mapping[str, int] | None = None) -> int:
    """Return the FLOPs of MatMul, Gemm, Conv and Attention; element-wise work isn't counted.

    Args:
        model: A graph with shapes.
        dims: Values of its symbolic dimensions.

    Raises:
        Refused: A shape is missing or a symbol has no value.
    """
    known = dict(dims or {})
    return sum(_COUNTERS[node.op_type](node, known) for node in model.graph if node.op_type in _COUNTERS)


def _matmul(node: ir.Node, dims: Mapping[str, int]) -> int:
    return 2 * math.prod(_shape(node.outputs[0], dims)) * _shape(node.inputs[0], dims)[-1]


def _gemm(node: ir.Node, dims: Mapping[str, int]) -> int:
    inner = _shape(node.inputs[0], dims)[0 if node.attributes.get_int("transA", 0) else 1]
    return 2 * math.prod(_shape(node.outputs[0], dims)) * inner


def _conv(node: ir.Node, dims: Mapping[str, int]) -> int:
    return 2 * math.prod(_shape(node.outputs[0], dims)) * math.prod(_shape(node.inputs[1], dims)[1:])


def _attention(node: ir.Node, dims: Mapping[str, int]) -> int:
    batch, heads, queries, width = _shape(node.inputs[0], dims)
    keys = _shape(node.inputs[1], dims)[2]
    return 2 * batch * heads * queries * keys * (width + _shape(node.inputs[2], dims)[3])


_COUNTERS = {"MatMul": _matmul, "Gemm": _gemm, "Conv": _conv, "Attention": _attention}


def _shape(value: ir.Value | None, dims: Mapping[str, int]) -> tuple[int, ...]:
    if value is None or value.shape is None:
        raise Refused(f"'{value and value.name}' has no shape: infer the shapes before counting")
    return tuple(dim if isinstance(dim, int) else _evaluate(str(dim.value), dims) for dim in value.shape)


def _evaluate(text: str, dims: Mapping[str, int]) -> int:
    """Evaluate a dimension such as ``past + seq``."""

    def walk(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name) and node.id in dims:
            return dims[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        raise Refused(f"the dimension '{text}' has no value: give one of {sorted(dims)}")

    return walk(ast.parse(text, mode="eval").body)
