"""The arithmetic of INT8: schemes, scales and zero points, each rounded to what the graph's own type can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.passes.lower.cast_float import HALF
from lmmprune.stored import Array

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How a graph is quantized; weights are always symmetric.

    Attributes:
        summary: What it is for.
        activation: Integer type of the activations; None leaves them in floating point (INT8 weights only).
        symmetric: Zero point 0 and a range of the same width on both sides.
        dynamic: Ranges are taken from the values at run-time: nothing to calibrate, but two more passes over each
            activation.
        conv_output: Whether a Conv needs a pair on its output too to become an integer kernel.
        wide_bias: Whether the bias behind a MatMul must have the product's rank, lest both become a float Gemm.
        ops: Which operators with weights it quantizes.
        weight: Integer type of the weights.
    """

    summary: str
    activation: ir.DataType | None
    symmetric: bool = True
    dynamic: bool = False
    conv_output: bool = False
    wide_bias: bool = False
    ops: tuple[str, ...] = ("MatMul", "Gemm", "Conv")
    weight: ir.DataType = ir.DataType.INT8

    @property
    def calibrated(self) -> bool:
        """Whether ranges must be measured before."""
        return self.activation is not None and not self.dynamic

    @property
    def levels(self) -> int:
        """How many integers an activation may become."""
        return 255 if self.symmetric else 256


SCHEMES: Mapping[str, Scheme] = {
    # The x86 kernels of ONNX Runtime want unsigned activations, and QLinearConv a quantized output. ONNX Runtime 1.31
    # joins MatMul and a bias of rank 1 to a Gemm before it looks for Q/DQ, and an integer Gemm wants an INT32 bias.
    "u8s8": Scheme(
        summary="static U8 activations, S8 weights (ONNX Runtime on x86)",
        activation=ir.DataType.UINT8,
        symmetric=False,
        conv_output=True,
        wide_bias=True,
    ),
    # TensorRT: symmetric only, zero point 0; nothing on outputs, so that bias and activation still fuse.
    "s8s8": Scheme(summary="static S8 activations, S8 weights (TensorRT)", activation=ir.DataType.INT8),
    # DynamicQuantizeLinear makes U8. ConvInteger is slow and the patch embedding small: it stays as it is.
    "u8s8-dynamic": Scheme(
        summary="U8 activations with ranges of each run, S8 weights (ONNX Runtime)",
        activation=ir.DataType.UINT8,
        symmetric=False,
        dynamic=True,
        ops=("MatMul",),
    ),
    "s8-weights": Scheme(
        summary="S8 weights, floating-point arithmetic (decode is bound by reading weights)",
        activation=None,
        ops=("MatMul", "Gemm"),
    ),
}


# Graphs of this one are written by ``InsertInt4``.
INT4 = "s4-weights"
LINTED: Mapping[str, Scheme] = {
    **SCHEMES,
    INT4: Scheme(
        summary="S4 weights with a scale per group of inputs, floating-point arithmetic",
        activation=None,
        ops=("MatMul",),
        weight=ir.DataType.INT4,
    ),
}
"""Schemes whose rules a graph can be held against."""


def quantization(value_range: Range, *, symmetric: bool, dtype: str = "float32") -> tuple[float, int]:
    """Return scale and zero point for a range, which is widened to contain zero (padding must be exact)."""
    low, high = min(value_range[0], 0.0), max(value_range[1], 0.0)
    if symmetric:
        return float(representable(np.float32(max(-low, high) / 127), dtype)), 0
    scale = float(representable(np.float32((high - low) / 255), dtype))
    return scale, int(np.clip(round(-low / scale), 0, 255))


# The smallest normal numbers: below them a scale loses its digits.
_TINY = {"float32": np.float32(1e-12), "float16": np.float32(2.0**-14), "bfloat16": np.float32(1e-12)}


def representable(scale: Array | np.float32, dtype: str) -> Array:
    """Round scales to what a type can hold, as float32; zero becomes the smallest useful scale."""
    kind = HALF[dtype][1] if dtype in HALF else np.float32
    return np.asarray(np.maximum(np.asarray(scale, np.float32), _TINY[dtype]).astype(kind), np.float32)


def weight_scales(weight: Array, axis: int, dtype: str = "float32") -> Array:
    """Return one symmetric scale per slice along an axis, float32 values that ``dtype`` can hold."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return representable(np.abs(weight.astype(np.float32)).max(axis=others) / np.float32(127), dtype)


def quantize_weight(weight: Array, axis: int, dtype: str = "float32") -> Array:
    """Return a weight as int8 in -127..127, divided by its scales along an axis."""
    spread = [1] * weight.ndim
    spread[axis] = weight.shape[axis]
    with np.errstate(invalid="ignore"):  # who reads the checkpoint counts what isn't a number, and names it
        scaled = weight.astype(np.float32) / weight_scales(weight, axis, dtype).reshape(spread)
        np.rint(scaled, out=scaled)
        integers: Array = np.clip(scaled, -127, 127, out=scaled).astype(np.int8)
    return integers


_BLOCK = 2**20
"""Values that are float32 at a time: few enough for a cache."""


def quantize_in_blocks(weight: Array, axis: int, dtype: str = "float32") -> tuple[Array, Array]:
    """Return what ``quantize_weight`` and ``weight_scales`` do, some slices along the axis at a time.

    A weight of a checkpoint in half precision never is float32 as a whole.
    """
    integers = np.empty(weight.shape, np.int8)
    scales = np.empty(weight.shape[axis], np.float32)
    step = max(_BLOCK * weight.shape[axis] // max(weight.size, 1), 1)
    for start in range(0, weight.shape[axis], step):
        part = tuple(slice(start, start + step) if i == axis else slice(None) for i in range(weight.ndim))
        block = weight[part].astype(np.float32)
        scales[start : start + step] = weight_scales(block, axis, dtype)
        integers[part] = quantize_weight(block, axis, dtype)
    return integers, scales


def output_axis(node: ir.Node) -> int:
    """Return which axis of a node's weight is the output channel: [in,out], [out,in] (transB), [out,in,kh,kw]."""
    if node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1):
        return 0
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    return len(weight.shape) - 1
