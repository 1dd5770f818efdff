"""Quantize MatMul, Gemm and Conv to INT8 with explicit QuantizeLinear/DequantizeLinear pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.errors import InputError
from lmmprune.lazy import Array, derive, numbers
from lmmprune.passes.builder import SCORE
from lmmprune.passes.cast_float import HALF
from lmmprune.passes.refusals import Broken, Refused
from lmmprune.passes.shapes import infer_shapes

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How activations become INT8 (weights are always symmetric S8, one scale per output channel).

    Attributes:
        activation: Integer type of the activations.
        symmetric: Zero point 0 and a range of the same width on both sides.
        conv_output: Whether a Conv needs a pair on its output too to become an integer kernel.
    """

    activation: ir.DataType
    symmetric: bool
    conv_output: bool


SCHEMES: dict[str, Scheme] = {
    # The x86 kernels of ONNX Runtime want unsigned activations, and QLinearConv a quantized output.
    "u8s8": Scheme(activation=ir.DataType.UINT8, symmetric=False, conv_output=True),
    # TensorRT: symmetric only, zero point 0; nothing on outputs, so that bias and activation still fuse.
    "s8s8": Scheme(activation=ir.DataType.INT8, symmetric=True, conv_output=False),
}

# Which axis of the weight is the output channel: [in,out], [out,in] under transB, [out,in,kh,kw].
_QUANTIZED = {"MatMul", "Gemm", "Conv"}


@dataclass(frozen=True, kw_only=True)
class InsertQdq(ir.passes.InPlacePass):
    """Put Q/DQ right before both inputs of every MatMul, Gemm and Conv that has a weight.

    Before: ``MatMul(x, w)``
    After: ``MatMul(DQ(Q(x)), DQ(w_int8))`` with one scale for x and one per output channel of w. x gets one pair
    however many nodes read it (q, k and v share a scale). Scores, biases, norms, softmax and the residual stream stay
    floating point.

    Attributes:
        scheme: Name in ``SCHEMES``.
        ranges: ``(min, max)`` of every activation in ``activations(model)``, from calibration.
        dtype: Floating-point type that the graph will be cast to: the integers are computed with the rounded scales.
    """

    scheme: str
    ranges: Mapping[str, Range]
    dtype: str = "float32"

    def requires(self, model: ir.Model) -> None:
        """Check scheme and ranges, and that the graph isn't quantized."""
        if self.scheme not in SCHEMES:
            raise Refused(f"no INT8 scheme '{self.scheme}': expected one of {', '.join(SCHEMES)}")
        if any(node.op_type in {"QuantizeLinear", "DequantizeLinear"} for node in model.graph):
            raise Refused("the graph already has QuantizeLinear/DequantizeLinear: start from the floating-point graph")
        for name in activations(model, self.scheme):
            if name not in self.ranges:
                raise Refused(f"no calibrated range for '{name}': calibrate this very graph")
            low, high = self.ranges[name]
            if not (np.isfinite(low) and np.isfinite(high)):
                raise InputError(
                    f"the calibrated range of '{name}' is [{low}, {high}]: the model makes NaN or infinity"
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        scheme = SCHEMES[self.scheme]
        pairs: dict[ir.Value, ir.Value] = {}
        targets = quantizable(model)
        for node in targets:
            activation, weight = node.inputs[0], node.inputs[1]
            assert activation is not None
            assert weight is not None
            if activation not in pairs:
                pairs[activation] = self._pair(model, activation, scheme)
            node.replace_input_with(0, pairs[activation])
            node.replace_input_with(1, _weight(model, node, weight, self.dtype))
            if node.op_type == "Conv" and scheme.conv_output:
                self._quantize_output(model, node, scheme)
        infer_shapes(model)
        return ir.passes.PassResult(model, modified=bool(targets))

    def ensures(self, model: ir.Model) -> None:
        """Check that no weight of a quantizable node is left in floating point."""
        for node in quantizable(model):
            raise Broken(f"'{node.name}' still has a floating-point weight")

    def _pair(self, model: ir.Model, value: ir.Value, scheme: Scheme) -> ir.Value:
        """Write Q and DQ behind a value and return what DQ gives."""
        assert value.name is not None
        scale, zero = quantization(self.ranges[value.name], symmetric=scheme.symmetric, dtype=self.dtype)
        kind = scheme.activation.numpy()
        names = [f"{value.name}/{part}" for part in ("scale", "zero_point", "quantized", "dequantized")]
        s = _initializer(model, np.asarray(scale, np.float32), names[0])
        z = _initializer(model, np.asarray(zero, kind), names[1])
        q = ir.node("QuantizeLinear", [value, s, z], name=names[2])
        dq = ir.node("DequantizeLinear", [q.outputs[0], s, z], name=names[3])
        q.outputs[0].name, dq.outputs[0].name = names[2], names[3]
        producer = value.producer()
        if producer is None:
            model.graph.insert_before(next(iter(model.graph)), [q, dq])
        else:
            model.graph.insert_after(producer, [q, dq])
        return dq.outputs[0]

    def _quantize_output(self, model: ir.Model, node: ir.Node, scheme: Scheme) -> None:
        output = node.outputs[0]
        users = list(output.uses())
        dequantized = self._pair(model, output, scheme)
        for user, index in users:
            user.replace_input_with(index, dequantized)


def quantizable(model: ir.Model) -> list[ir.Node]:
    """Return the nodes whose second input is a floating-point weight, scores excepted."""
    return [
        node
        for node in model.graph
        if node.op_type in _QUANTIZED
        and SCORE not in node.metadata_props
        and len(node.inputs) > 1
        and node.inputs[1] is not None
        and node.inputs[1].is_initializer()
        and node.inputs[1].shape is not None
        and len(node.inputs[1].shape) >= 2
    ]


def activations(model: ir.Model, scheme: str) -> list[str]:
    """Return the names of the values that need a calibrated range."""
    names: dict[str, None] = {}
    for node in quantizable(model):
        names[str(node.inputs[0].name)] = None  # type: ignore[union-attr]  # quantizable() checked the inputs
        if node.op_type == "Conv" and SCHEMES[scheme].conv_output:
            names[str(node.outputs[0].name)] = None
    return list(names)


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


def _weight(model: ir.Model, node: ir.Node, weight: ir.Value, dtype: str) -> ir.Value:
    """Replace a weight by its INT8 form behind a DequantizeLinear, shared by all nodes that use it."""
    axis = _output_axis(node)
    shape = numbers(weight.shape)
    name = f"{weight.name}/int8"
    done = model.graph.initializers.get(name)
    if done is not None:
        return next(user.outputs[0] for user, _ in done.uses())
    spread = [1] * len(shape)
    spread[axis] = shape[axis]

    def scales(array: Array) -> Array:
        return weight_scales(array, axis, dtype)

    def quantize(array: Array) -> Array:
        scaled = array.astype(np.float32) / weight_scales(array, axis, dtype).reshape(spread)
        integers: Array = np.clip(np.rint(scaled), -127, 127).astype(np.int8)
        return integers

    scale = derive(weight, scales, dtype=ir.DataType.FLOAT, shape=[shape[axis]], name=f"{weight.name}/scale")
    values = derive(weight, quantize, dtype=ir.DataType.INT8, shape=shape, name=name)
    zero = _initializer(model, np.zeros(shape[axis], np.int8), f"{weight.name}/zero_point")
    model.graph.register_initializer(scale)
    model.graph.register_initializer(values)
    dq = ir.node("DequantizeLinear", [values, scale, zero], {"axis": axis}, name=f"{weight.name}/dequantized")
    dq.outputs[0].name = f"{weight.name}/dequantized"
    model.graph.insert_before(node, dq)
    if len(weight.uses()) == 1:
        assert weight.name is not None
        node.replace_input_with(1, None)
        del model.graph.initializers[weight.name]
    return dq.outputs[0]


def _output_axis(node: ir.Node) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1:
        return 0
    assert node.inputs[1] is not None
    assert node.inputs[1].shape is not None
    return len(node.inputs[1].shape) - 1


def _initializer(model: ir.Model, array: Array, name: str) -> ir.Value:
    tensor = ir.Tensor(np.asarray(array), name=name)
    value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value
