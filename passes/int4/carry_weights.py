"""Store the weights of a graph's products as the integers that a checkpoint holds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from lmmprune.lazy import lazy, numbers
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.passes.int4.insert_int4 import groupable
from lmmprune.passes.int8.quantized_weight import constant
from lmmprune.stored import Array


class Packed(Protocol):
    """A weight ``[K,N]``, K inputs and N outputs, in integers."""

    @property
    def bits(self) -> int:
        """Of an integer, 4 or 8."""
        ...

    @property
    def group(self) -> int:
        """Inputs that share a scale; K if all do."""
        ...

    def order(self) -> Array | None:
        """Return the order in which its inputs are stored, int64 ``[K]``; None: in their own."""
        ...

    def integers(self) -> Array:
        """Return uint8 ``[K,N]``, from 0 on."""
        ...

    def zeros(self) -> Array | None:
        """Return what stands for zero, uint8 ``[G,N]``; None: the middle does."""
        ...

    def scales(self) -> Array:
        """Return its scales, ``[G,N]``, of a floating-point type."""
        ...


@dataclass(frozen=True, kw_only=True)
class CarryWeights(GraphPass):
    """Put a DequantizeLinear before each product whose weight is known in integers; nothing is rounded.

    Before: ``MatMul(x, w [K,N])``
    After: ``MatMul(x, DequantizeLinear(w int4 [K,N], scale [G,N], axis=0, block_size=g))``; uint4 and a zero point for
    each scale where zero isn't the middle; int8 and uint8 with weights of eight bits. Weights whose inputs lie in
    another order get ``Gather(x, order, axis=-1)`` for x. Without ``group``:
    ``DequantizeLinear(w int8 [K,N], scale [N], 0, axis=1)``

    What scores are computed with stays in floating point.

    Attributes:
        packed: Weight -> its integers.
        group: Inputs that share a scale in the graph, of which a weight's own group is a multiple, or the same; scales
            are repeated. None: one scale for an output.
    """

    packed: Mapping[str, Packed]
    group: int | None

    def requires(self, model: ir.Model) -> None:
        """Check that the weights are those of products, and that groups divide theirs."""
        if any(node.op_type == "DequantizeLinear" for node in model.graph):
            raise Refused("the graph already has DequantizeLinear: start from the floating-point graph")
        products = {node.inputs[1] for node in groupable(model)}
        for name, packed in self.packed.items():
            weight = model.graph.initializers.get(name)
            if weight is None or weight not in products:
                raise Refused(
                    f"'{name}' is quantized, and isn't the weight of a product here: keep its module in floating point"
                    " where the checkpoint is made"
                )
            inputs = numbers(weight.shape)[0]
            own = packed.group
            fits = own >= inputs or (self.group is not None and own % self.group == 0)
            if not fits:
                raise Refused(f"'{name}' has groups of {own} inputs: expected {self.group or 'all'} of {inputs}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite; the integers are read when they are written."""
        made: dict[ir.Value, ir.Value] = {}
        ordered: dict[tuple[ir.Value, bytes], ir.Value] = {}
        for node in groupable(model):
            activation, weight = node.inputs[:2]
            assert activation is not None
            assert weight is not None
            if (packed := self.packed.get(str(weight.name))) is None:
                continue
            if weight not in made:
                made[weight] = self._dequantized(model, node, weight, packed)
            node.replace_input_with(1, made[weight])
            if (order := packed.order()) is not None:
                key = (activation, order.tobytes())
                if key not in ordered:
                    ordered[key] = _gathered(model, node, activation, order, str(weight.name))
                node.replace_input_with(0, ordered[key])
        for weight in made:
            if not weight.uses():
                del model.graph.initializers[str(weight.name)]
        return ir.passes.PassResult(model, modified=bool(made))

    def ensures(self, model: ir.Model) -> None:
        """Check that no such weight is left in a product."""
        for node in groupable(model):
            if str(node.inputs[1].name) in self.packed:  # type: ignore[union-attr]  # groupable() checked it
                raise Broken(f"'{node.name}' still has a floating-point weight")

    def _dequantized(self, model: ir.Model, node: ir.Node, weight: ir.Value, packed: Packed) -> ir.Value:
        """Write a weight and its DequantizeLinear before a node; return what that gives."""
        inputs, outputs = numbers(weight.shape)
        name, bits = str(weight.name), packed.bits
        zeros = packed.zeros()
        if self.group is None and zeros is not None:
            raise Refused(f"'{name}' has zero points, and one scale for an output: expected symmetric integers")
        kind = _KINDS[bits, zeros is not None]
        values = _reader(
            model, functools.partial(_shifted, packed.integers, kind), kind, (inputs, outputs), f"{name}/int{bits}"
        )
        if self.group is None:
            scale = _reader(model, lambda: packed.scales()[0], ir.DataType.FLOAT, (outputs,), f"{name}/scale")
            zero = constant(model, np.zeros(outputs, np.int8), f"{name}/zero_point")
            form: dict[str, int] = {"axis": 1}
            read = [values, scale, zero]
        else:
            groups = math.ceil(inputs / self.group)
            spread = functools.partial(_spread, group=packed.group, into=self.group, groups=groups)
            scale = _reader(
                model, lambda: spread(packed.scales()), ir.DataType.FLOAT, (groups, outputs), f"{name}/scale"
            )
            form, read = {"axis": 0, "block_size": self.group}, [values, scale]
            if zeros is not None:
                read.append(
                    _reader(model, lambda: spread(_zeros(packed)), kind, (groups, outputs), f"{name}/zero_point")
                )
        dq = ir.node("DequantizeLinear", read, form, name=f"{name}/dequantized")
        result = dq.outputs[0]
        result.name, result.shape, result.type = dq.name, ir.Shape([inputs, outputs]), ir.TensorType(ir.DataType.FLOAT)
        model.graph.insert_before(node, dq)
        return result


# Bits, and whether there are zero points -> the type.
_KINDS = {
    (4, False): ir.DataType.INT4,
    (4, True): ir.DataType.UINT4,
    (8, False): ir.DataType.INT8,
    (8, True): ir.DataType.UINT8,
}


def _reader(
    model: ir.Model, read: Callable[[], Array], dtype: ir.DataType, shape: tuple[int, ...], name: str
) -> ir.Value:
    tensor = lazy(read, dtype=dtype, shape=shape, name=name)
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _shifted(read: Callable[[], Array], kind: ir.DataType) -> Array:
    """Read integers from 0 on, and move them around zero where the type is signed."""
    found = read()
    if kind == ir.DataType.INT8:
        return np.asarray((found ^ np.uint8(0x80)).view(np.int8))
    return found.view(np.int8) - np.int8(8) if kind == ir.DataType.INT4 else found


def _zeros(packed: Packed) -> Array:
    zeros = packed.zeros()
    assert zeros is not None, "they were there when the graph was written"
    return zeros


def _spread(array: Array, *, group: int, into: int, groups: int) -> Array:
    """Repeat what is there for each group ``[G,N]`` for the smaller groups that it is made of."""
    return array if group == into else np.repeat(array, math.ceil(group / into), axis=0)[:groups]


def _gathered(model: ir.Model, node: ir.Node, activation: ir.Value, order: Array, name: str) -> ir.Value:
    """Write a Gather before a node that brings its activation into the order of its weight's inputs."""
    places = constant(model, order, f"{name}/order")
    gather = ir.node("Gather", [activation, places], {"axis": -1}, name=f"{name}/ordered")
    result = gather.outputs[0]
    result.name, result.shape, result.type = gather.name, activation.shape, activation.type
    model.graph.insert_before(node, gather)
    return result
