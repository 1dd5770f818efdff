"""A quantized weight: its integers and scales are computed while they are written, and it is read once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.lazy import derive, lazy, numbers
from lmmprune.passes.int8.int8 import quantize_in_blocks
from lmmprune.stored import Array


class QuantizedWeight:
    """The INT8 form of a weight, computed when it is written, and its DequantizeLinear."""

    def __init__(self, model: ir.Model, weight: ir.Value, axis: int, dtype: str) -> None:
        self._float = weight
        self._axis = axis
        shape = numbers(weight.shape)
        prefix = str(weight.name)
        if f"{prefix}/int8" in model.graph.initializers:  # one weight, read along two axes
            prefix = f"{prefix}.axis{axis}"
        self._prefix = prefix
        # Written before its scales, so that these are known by then and the weight is read once.
        once = Once(quantize=functools.partial(quantize_in_blocks, axis=axis, dtype=dtype))
        self.values = derive(weight, once.integers, dtype=ir.DataType.INT8, shape=shape, name=f"{prefix}/int8")
        # The tensor itself: shape inference lends an initializer that others still read to itself, without its values.
        source = weight.const_value
        assert source is not None
        self.scale = once.scale(source, shape=[shape[axis]], name=f"{prefix}/scale")
        self.zero = constant(model, np.zeros(shape[axis], np.int8), f"{prefix}/zero_point")
        self._result: ir.Value | None = None
        model.graph.register_initializer(self.values)
        model.graph.register_initializer(self.scale)

    def dequantized(self, model: ir.Model, node: ir.Node) -> ir.Value:
        """Return the weight behind a DequantizeLinear, for a node that comes first or later."""
        if self._result is None:
            name = f"{self._prefix}/dequantized"
            dq = ir.node("DequantizeLinear", [self.values, self.scale, self.zero], {"axis": self._axis}, name=name)
            dq.outputs[0].name = name
            model.graph.insert_before(node, dq)
            self._result = dq.outputs[0]
        node.replace_input_with(1, None)
        self.release(model)
        return self._result

    def release(self, model: ir.Model) -> None:
        """Drop the floating-point weight once nothing reads it."""
        name = str(self._float.name)
        if not self._float.uses() and name in model.graph.initializers:
            del model.graph.initializers[name]


@dataclass(kw_only=True)
class Once:
    """Quantizes a weight, and remembers its scales until they are asked for.

    Attributes:
        quantize: Gives integers and float32 scales of a weight.
        known: Scales of the last one whose integers were asked for.
    """

    quantize: Callable[[Array], tuple[Array, Array]]
    known: Array | None = None

    def integers(self, weight: Array) -> Array:
        """Return a weight as integers."""
        integers, self.known = self.quantize(weight)
        return integers

    def scales(self, weight: ir.TensorProtocol) -> Array:
        """Return its scales; it is read only if it hasn't been since they were last asked for."""
        known, self.known = self.known, None
        return self.quantize(weight.numpy())[1] if known is None else known

    def scale(self, weight: ir.TensorProtocol, *, shape: list[int], name: str) -> ir.Value:
        """Return an initializer, which is yet to be registered, with the scales of a weight."""
        tensor = lazy(lambda: self.scales(weight), dtype=ir.DataType.FLOAT, shape=shape, name=name)
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)


def constant(model: ir.Model, array: Array, name: str) -> ir.Value:
    """Add a constant to a graph."""
    tensor = ir.Tensor(np.asarray(array), name=name)
    value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value
