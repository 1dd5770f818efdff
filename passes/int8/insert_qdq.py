"""Quantize MatMul, Gemm and Conv to INT8, by explicit QuantizeLinear/DequantizeLinear pairs where ranges are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from lmmprune.errors import InputError
from lmmprune.lazy import derive, numbers
from lmmprune.passes.find.blocks import find_blocks, refuse_unknown
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.passes.graph.shapes import infer_shapes
from lmmprune.passes.int8.int8 import SCHEMES, Range, Scheme, output_axis, quantization
from lmmprune.passes.int8.quantized_weight import QuantizedWeight, constant


@dataclass(frozen=True, kw_only=True)
class InsertQdq(GraphPass):
    """Put Q/DQ right before both inputs of every MatMul, Gemm and Conv that has a weight.

    Before: ``MatMul(x, w)``
    After: ``MatMul(DQ(Q(x)), DQ(w_int8))`` with one scale for x and one per output channel of w. x gets one pair
    however many nodes read it (q, k and v share a scale). Scores, biases, norms, softmax and the residual stream stay
    floating point. A scheme for weights only writes no pair before x; a dynamic one writes
    ``Cast(MatMulInteger(DynamicQuantizeLinear(x), w_int8)) * scale`` instead.

    Attributes:
        scheme: Name in ``SCHEMES``.
        ranges: ``(min, max)`` of every activation in ``activations(model, ...)``, from calibration.
        dtype: Floating-point type that the graph will be cast to: the integers are computed with the rounded scales.
        keep_float: Names of blocks (see ``blocks.find_blocks``) that stay as they are.
    """

    scheme: str
    ranges: Mapping[str, Range] = field(default_factory=dict)
    dtype: str = "float32"
    keep_float: frozenset[str] = frozenset()

    def requires(self, model: ir.Model) -> None:
        """Check scheme, blocks and ranges, and that the graph isn't quantized."""
        if self.scheme not in SCHEMES:
            raise Refused(f"no INT8 scheme '{self.scheme}': expected one of {', '.join(SCHEMES)}")
        if any(node.op_type in {"QuantizeLinear", "DequantizeLinear", "MatMulInteger"} for node in model.graph):
            raise Refused("the graph already has QuantizeLinear/DequantizeLinear: start from the floating-point graph")
        refuse_unknown(model, self.keep_float)
        if SCHEMES[self.scheme].dynamic and self.dtype != "float32":
            raise Refused(f"INT8 scheme '{self.scheme}' quantizes float32 activations only, not {self.dtype}")
        for name in activations(model, self.scheme, keep_float=self.keep_float):
            if name not in self.ranges:
                raise Refused(f"no calibrated range for '{name}': calibrate this very graph")
            low, high = self.ranges[name]
            if not (np.isfinite(low) and np.isfinite(high)):
                raise InputError(
                    f"the calibrated range of '{name}' is [{low}, {high}]: the model makes NaN or infinity"
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        targets = quantizable(model, self.scheme, keep_float=self.keep_float)
        writer = _Writer(model, SCHEMES[self.scheme], self.ranges, self.dtype)
        for node in targets:
            writer.quantize(node)
        infer_shapes(model)
        return ir.passes.PassResult(model, modified=bool(targets))

    def ensures(self, model: ir.Model) -> None:
        """Check that no weight of a quantizable node is left in floating point."""
        for node in quantizable(model, self.scheme, keep_float=self.keep_float):
            raise Broken(f"'{node.name}' still has a floating-point weight")


def quantizable(model: ir.Model, scheme: str = "s8s8", *, keep_float: frozenset[str] = frozenset()) -> list[ir.Node]:
    """Return the nodes with a floating-point weight that a scheme quantizes: no scores, no block to keep in float."""
    ops = SCHEMES[scheme].ops
    blocks = find_blocks(model)
    return [
        node
        for node, block in blocks.items()
        if node.op_type in ops
        and node.inputs[1].is_initializer()  # type: ignore[union-attr]  # it has a weight
        and block.role != "score"
        and block.name not in keep_float
    ]


def activations(model: ir.Model, scheme: str, *, keep_float: frozenset[str] = frozenset()) -> list[str]:
    """Return the names of the values that need a calibrated range."""
    if not SCHEMES[scheme].calibrated:
        return []
    names: dict[str, None] = {}
    for node in quantizable(model, scheme, keep_float=keep_float):
        names[str(node.inputs[0].name)] = None  # type: ignore[union-attr]  # quantizable() checked the inputs
        if node.op_type == "Conv" and SCHEMES[scheme].conv_output:
            names[str(node.outputs[0].name)] = None
    return list(names)


class _Writer:
    """Writes the new nodes; what several nodes read is written once."""

    def __init__(self, model: ir.Model, scheme: Scheme, ranges: Mapping[str, Range], dtype: str) -> None:
        self._model = model
        self._scheme = scheme
        self._ranges = ranges
        self._dtype = dtype
        self._quantized: dict[ir.Value, tuple[ir.Value, ...]] = {}
        self._weights: dict[tuple[ir.Value, int], QuantizedWeight] = {}

    def quantize(self, node: ir.Node) -> None:
        """Quantize one node."""
        activation = node.inputs[0]
        assert activation is not None
        if self._scheme.dynamic:
            self._integer_product(node, activation)
            return
        if self._scheme.activation is not None:
            node.replace_input_with(0, self._pair(activation))
        weight = self._weight(node)
        node.replace_input_with(1, weight.dequantized(self._model, node))
        if node.op_type == "MatMul" and self._scheme.wide_bias:
            _widen_bias(self._model, node)
        if node.op_type == "Conv" and self._scheme.conv_output:
            output = node.outputs[0]
            users = list(output.uses())
            dequantized = self._pair(output)
            for user, index in users:
                user.replace_input_with(index, dequantized)

    def _pair(self, value: ir.Value) -> ir.Value:
        """Write Q and DQ behind a value and return what DQ gives."""
        if value in self._quantized:
            return self._quantized[value][0]
        assert value.name is not None
        assert self._scheme.activation is not None
        scale, zero = quantization(self._ranges[value.name], symmetric=self._scheme.symmetric, dtype=self._dtype)
        names = [f"{value.name}/{part}" for part in ("scale", "zero_point", "quantized", "dequantized")]
        s = constant(self._model, np.asarray(scale, np.float32), names[0])
        z = constant(self._model, np.asarray(zero, self._scheme.activation.numpy()), names[1])
        q = ir.node("QuantizeLinear", [value, s, z], name=names[2])
        dq = ir.node("DequantizeLinear", [q.outputs[0], s, z], name=names[3])
        q.outputs[0].name, dq.outputs[0].name = names[2], names[3]
        _insert_behind(self._model, value, [q, dq])
        self._quantized[value] = (dq.outputs[0],)
        return dq.outputs[0]

    def _integer_product(self, node: ir.Node, activation: ir.Value) -> None:
        """Replace a MatMul by an integer product of what is quantized at run-time."""
        values, scale, zero = self._dynamic(activation)
        weight = self._weight(node)
        name = node.outputs[0].name
        product = ir.node("MatMulInteger", [values, weight.values, zero, weight.zero], name=f"{node.name}/integer")
        cast = ir.node("Cast", [product.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{node.name}/cast")
        scales = ir.node("Mul", [scale, weight.scale], name=f"{node.name}/scales")
        result = ir.node("Mul", [cast.outputs[0], scales.outputs[0]], name=f"{node.name}/rescaled")
        made = [product, cast, scales, result]
        for new in made:
            new.outputs[0].name = f"{new.name}_out"
        self._model.graph.insert_before(node, made)
        node.outputs[0].replace_all_uses_with(result.outputs[0], replace_graph_outputs=True)
        self._model.graph.remove(node, safe=True)
        result.outputs[0].name = name
        weight.release(self._model)

    def _dynamic(self, value: ir.Value) -> tuple[ir.Value, ...]:
        if value not in self._quantized:
            node = ir.node("DynamicQuantizeLinear", [value], num_outputs=3, name=f"{value.name}/quantized")
            for output, part in zip(node.outputs, ("quantized", "scale", "zero_point"), strict=True):
                output.name = f"{value.name}/{part}"
            _insert_behind(self._model, value, [node])
            self._quantized[value] = tuple(node.outputs)
        return self._quantized[value]

    def _weight(self, node: ir.Node) -> QuantizedWeight:
        weight, axis = node.inputs[1], output_axis(node)
        assert weight is not None
        if (weight, axis) not in self._weights:
            self._weights[weight, axis] = QuantizedWeight(self._model, weight, axis, self._dtype)
        return self._weights[weight, axis]


def _widen_bias(model: ir.Model, node: ir.Node) -> None:
    """Give the bias behind a product the product's rank: ``[N]`` becomes ``[1,1,N]``."""
    users = [user for user, _ in node.outputs[0].uses()]
    if len(users) != 1 or users[0].op_type != "Add" or node.outputs[0].shape is None or len(node.outputs[0].shape) != 3:
        return
    for index, bias in enumerate(users[0].inputs):
        if bias is None or not bias.is_initializer() or bias.shape is None or len(bias.shape) != 1:
            continue
        assert bias.dtype is not None
        shape = (1, 1, *numbers(bias.shape))
        wide = derive(
            bias, lambda array: array.reshape(1, 1, -1), dtype=bias.dtype, shape=shape, name=f"{bias.name}/wide"
        )
        model.graph.register_initializer(wide)
        users[0].replace_input_with(index, wide)
        if not bias.uses():
            del model.graph.initializers[str(bias.name)]


def _insert_behind(model: ir.Model, value: ir.Value, nodes: list[ir.Node]) -> None:
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(next(iter(model.graph)), nodes)
    else:
        model.graph.insert_after(producer, nodes)
