"""Store the weights of a graph's products in four bits."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import onnx_ir as ir

from lmmprune.lazy import derive, lazy, numbers
from lmmprune.passes.find.blocks import find_blocks, refuse_unknown
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.passes.int4.int4 import GROUPS, quantize_groups
from lmmprune.passes.int8.quantized_weight import Once
from lmmprune.stored import Array


class Known(Protocol):
    """A weight ``[K,N]`` that is rounded already."""

    def integers(self) -> Array:
        """Return its integers -8..7, ``[K,N]``."""
        ...

    def scales(self) -> Array:
        """Return its scales, ``[ceil(K/g),N]``."""
        ...


@dataclass(frozen=True, kw_only=True)
class InsertInt4(GraphPass):
    """Put a DequantizeLinear of groups before the weight of every MatMul that has one.

    Before: ``MatMul(x, w [K,N])``
    After: ``MatMul(x, DequantizeLinear(w int4 [K,N], scale [ceil(K/g),N], axis=0, block_size=g))``

    Arithmetic, activations, scores, norms and tables that are looked up stay in floating point.

    Attributes:
        group: Inputs that share a scale, g: one of ``GROUPS``.
        dtype: Floating-point type that the graph will be cast to: the integers are computed with the rounded scales.
        whole: Whether the runtime takes whole groups only.
        keep_float: Names of blocks (see ``blocks.find_blocks``) that stay as they are.
        rounded: Weight -> its integers and scales, where they are known; others are rounded to the nearest.
    """

    group: int
    dtype: str = "float32"
    whole: bool = False
    keep_float: frozenset[str] = frozenset()
    rounded: Mapping[str, Known] = field(default_factory=dict)

    def requires(self, model: ir.Model) -> None:
        """Check groups and blocks, and that the graph isn't quantized."""
        if self.group not in GROUPS:
            raise Refused(f"no groups of {self.group} inputs: expected {', '.join(map(str, GROUPS))}")
        if any(node.op_type == "DequantizeLinear" for node in model.graph):
            raise Refused("the graph already has DequantizeLinear: start from the floating-point graph")
        refuse_unknown(model, self.keep_float)
        for node in groupable(model, keep_float=self.keep_float):
            weight = node.inputs[1]
            inputs = numbers(weight.shape)[0]  # type: ignore[union-attr]  # groupable() checked it
            if self.whole and inputs % self.group:
                fitting = [str(group) for group in GROUPS if inputs % group == 0]
                raise Refused(
                    f"'{weight.name}' has {inputs} inputs, which groups of {self.group} don't divide: "  # type: ignore[union-attr]  # same
                    + (f"--int4-group {fitting[-1]}" if fitting else "keep its block in float (--keep-float)")
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite; the integers are computed when they are written."""
        targets = groupable(model, keep_float=self.keep_float)
        made: dict[ir.Value, ir.Value] = {}
        for node in targets:
            weight = node.inputs[1]
            assert weight is not None
            if weight not in made:
                made[weight] = self._dequantized(model, node, weight)
            node.replace_input_with(1, made[weight])
            if not weight.uses():
                del model.graph.initializers[str(weight.name)]
        return ir.passes.PassResult(model, modified=bool(targets))

    def ensures(self, model: ir.Model) -> None:
        """Check that no weight is left in floating point."""
        for node in groupable(model, keep_float=self.keep_float):
            raise Broken(f"'{node.name}' still has a floating-point weight")

    def _dequantized(self, model: ir.Model, node: ir.Node, weight: ir.Value) -> ir.Value:
        """Write the four-bit form of a weight and its DequantizeLinear before a node; return what that gives."""
        inputs, outputs = numbers(weight.shape)
        name = str(weight.name)
        stored = (ir.DataType.INT4, (inputs, outputs), f"{name}/int4")
        scaled = (ir.DataType.FLOAT, (math.ceil(inputs / self.group), outputs), f"{name}/scale")
        if (known := self.rounded.get(name)) is not None:
            values, scale = _read(known.integers, *stored), _read(known.scales, *scaled)
        else:
            # Written before its scales, so that these are known by then and the weight is read once.
            once = Once(quantize=functools.partial(quantize_groups, group=self.group, dtype=self.dtype))
            values = derive(weight, once.integers, dtype=stored[0], shape=stored[1], name=stored[2])
            source = weight.const_value
            assert source is not None
            scale = once.scale(source, shape=list(scaled[1]), name=scaled[2])
        for made in (values, scale):
            model.graph.register_initializer(made)
        form = {"axis": 0, "block_size": self.group}
        dq = ir.node("DequantizeLinear", [values, scale], form, name=f"{name}/dequantized")
        result = dq.outputs[0]
        result.name, result.shape, result.type = dq.name, ir.Shape([inputs, outputs]), ir.TensorType(ir.DataType.FLOAT)
        model.graph.insert_before(node, dq)
        return result


def _read(read: Callable[[], Array], dtype: ir.DataType, shape: tuple[int, int], name: str) -> ir.Value:
    tensor = lazy(read, dtype=dtype, shape=shape, name=name)
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)


def groupable(model: ir.Model, *, keep_float: frozenset[str] = frozenset()) -> list[ir.Node]:
    """Return the MatMul nodes with a floating-point weight ``[K,N]``: no scores, no block to keep in float."""
    return [
        node
        for node, block in find_blocks(model).items()
        if node.op_type == "MatMul"
        and node.inputs[1].is_initializer()  # type: ignore[union-attr]  # it has a weight
        and len(node.inputs[1].shape) == 2  # type: ignore[union-attr, arg-type]  # same
        and block.role != "score"
        and block.name not in keep_float
    ]
