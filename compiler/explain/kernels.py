"""The kernels that a runtime may compute a product with: in integers or in floating point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["integer", "float"]

# Operators of ONNX and of com.microsoft that multiply by a weight, or an attention's two factors (onnxruntime 1.31).
KERNELS: Mapping[str, Kind] = {
    "QLinearMatMul": "integer",
    "MatMulInteger": "integer",
    "MatMulIntegerToFloat": "integer",
    "DynamicQuantizeMatMul": "integer",
    "QGemm": "integer",
    "QLinearConv": "integer",
    "ConvInteger": "integer",
    "QAttention": "integer",
    "MatMulNBits": "integer",
    "MatMul": "float",
    "FusedMatMul": "float",
    "FusedMatMulActivation": "float",
    "Gemm": "float",
    "FusedGemm": "float",
    "GemmFloat8": "float",
    "Conv": "float",
    "FusedConv": "float",
    "NhwcFusedConv": "float",
    "Attention": "float",
    "MultiHeadAttention": "float",
    "GroupQueryAttention": "float",
}

# What turns floating point into integers and back around them.
QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})

# doc: MatMulNBits multiplies in INT8 at accuracy level 4, in floating point at any other and without one.
_INT8_LEVEL = 4


def kind_of(op_type: str, attributes: Mapping[str, Any]) -> Kind:
    """Return whether a kernel multiplies integers.

    Args:
        op_type: A key of ``KERNELS``.
        attributes: Of the node, by name; only ``accuracy_level`` is looked at.
    """
    if op_type == "MatMulNBits" and attributes.get("accuracy_level", 0) != _INT8_LEVEL:
        return "float"
    return KERNELS[op_type]
