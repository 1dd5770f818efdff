"""Why a product stayed in floating point, and what is to know of one that didn't."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # these need onnx-ir, which the run-time's install doesn't have
    from lmmprune.compiler.explain.layers import Product
    from lmmprune.compiler.explain.match import Kernel

Test = Callable[["Product", "Kernel"], bool]


@dataclass(frozen=True, kw_only=True)
class Reason:
    """A short name, and one line that says what was found and what would change it."""

    name: str
    text: str


# The first that holds is the reason; seen with onnxruntime 1.31 on x86 unless marked.
_FLOAT: tuple[tuple[Test, Reason], ...] = (
    (
        lambda layer, kernel: layer.score,
        Reason(name="score", text="a score of the pruning method: kept float, INT8 would flip near ties"),
    ),
    (
        lambda layer, kernel: layer.role == "attention",
        Reason(name="attention", text="both factors are activations: there is no weight to quantize"),
    ),
    (
        lambda layer, kernel: layer.weight is None,
        Reason(name="no weight", text="both factors are activations: there is no weight to quantize"),
    ),
    (
        lambda layer, kernel: not layer.quantized,
        Reason(name="no Q/DQ", text="kept float by the policy: no Q/DQ around it in the exported graph"),
    ),
    (
        lambda layer, kernel: layer.activation is None,
        Reason(name="weight only", text="only its weight is integer: it is expanded and multiplied in floating point"),
    ),
    (
        lambda layer, kernel: layer.float_type != "FLOAT",
        Reason(
            name="activation type",
            text="has Q/DQ of a half-precision activation: the integer kernels give float32 only; export float32",
        ),
    ),
    (
        lambda layer, kernel: layer.op == "Conv" and not layer.output_quantized,
        Reason(name="output", text="has Q/DQ, but its output isn't quantized: QLinearConv needs that"),
    ),
    (
        lambda layer, kernel: kernel.op == "Gemm" and layer.bias is not None,
        Reason(
            name="bias",
            text="has Q/DQ, but was joined with its float bias into a Gemm, which fuses with an INT32 bias only: "
            "quantize the bias, or give it the rank of the product",
        ),
    ),
)
NOT_QUANTIZED = Reason(name="not quantized", text="nothing in the graph is quantized")
_NOT_FUSED = Reason(name="not fused", text="has Q/DQ, but the runtime did not fuse them into an integer kernel")
_MISSING = Reason(name="not found", text="no kernel of the optimised graph could be told to be it: folded or joined")

_S8 = Reason(name="S8 activation", text="integer, but with S8 activations: the x86 kernels are made for U8")


def why_float(layer: Product, kernel: Kernel | None, *, quantized: bool) -> Reason | None:
    """Return why a layer's kernel multiplies in floating point, None if it multiplies integers.

    Args:
        layer: Of the exported graph.
        kernel: What computes it, None if no kernel could be told to.
        quantized: Whether any layer of that graph has an INT8 weight.
    """
    if kernel is None:
        return _MISSING
    if kernel.kind == "integer":
        return None
    if layer.weight is not None and not quantized:
        return NOT_QUANTIZED
    return next((reason for test, reason in _FLOAT if test(layer, kernel)), _NOT_FUSED)


def remark(layer: Product, kernel: Kernel | None) -> Reason | None:
    """Return what slows an integer kernel down, None if nothing is known to."""
    integer = kernel is not None and kernel.kind == "integer"
    return _S8 if integer and layer.activation == "INT8" else None
