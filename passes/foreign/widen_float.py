"""Turn a graph in half precision into float32, the type of the canonical form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.lazy import derive, numbers
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.passes.graph.shapes import infer_shapes

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_HALF_CODES = [int(kind) for kind in _HALF]


@dataclass(frozen=True, kw_only=True)
class WidenFloat(GraphPass):
    """Let a graph compute in float32 what it computed in float16 or bfloat16; ``CastFloat`` is the way back.

    Before: ``pixel_values`` and weights float16, ``Cast(Softmax(Cast(x, to=float32)), to=float16)``
    After: all of them float32, ``Cast(Softmax(Cast(x, to=float32)), to=float32)``: casts that do nothing now

    Weights are widened while they are streamed, and keep the values that half precision gave them.
    """

    def requires(self, model: ir.Model) -> None:
        """Check that no node spells a half-precision type out in a way that isn't followed here."""
        for node in model.graph:
            dtype = node.attributes.get("dtype")
            if dtype is not None and dtype.value in _HALF_CODES:
                raise Refused(f"'{node.name}' ({node.op_type}) makes half-precision values: export in float32")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        values = [*model.graph.inputs, *model.graph.initializers.values()]
        inner = [output for node in model.graph for output in node.outputs]
        if not any(value.dtype in _HALF for value in (*values, *inner)):
            return ir.passes.PassResult(model, modified=False)
        for value in model.graph.inputs:
            if value.dtype in _HALF:
                value.type = ir.TensorType(ir.DataType.FLOAT)
        for name, value in list(model.graph.initializers.items()):
            if value.dtype in _HALF and not value.is_graph_input():
                _widen(model, name, value)
        for node in model.graph:
            _widen_node(node)
            for output in node.outputs:
                output.type = None
        infer_shapes(model)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check that nothing is left in half precision."""
        inner = [output for node in model.graph for output in node.outputs]
        for value in [*model.graph.inputs, *model.graph.initializers.values(), *inner]:
            if value.dtype in _HALF:
                raise Broken(f"'{value.name}' is still {value.dtype} after widening")


def _widen(model: ir.Model, name: str, value: ir.Value) -> None:
    new = derive(
        value,
        lambda array: array.astype(np.float32),
        dtype=ir.DataType.FLOAT,
        shape=numbers(value.shape),
        name=f"{name}.float32",
    )
    assert value.const_value is not None
    if not isinstance(value.const_value, ir.LazyTensor):
        # What is visible stays visible: scales and epsilons are looked at.
        new.const_value = ir.Tensor(value.const_value.numpy().astype(np.float32), name=new.name)
    ir.convenience.replace_all_uses_with(value, new, replace_graph_outputs=True)
    del model.graph.initializers[name]
    model.graph.register_initializer(new)


def _widen_node(node: ir.Node) -> None:
    """Let a node that names a half-precision type name float32."""
    if node.op_type == "Cast" and node.attributes.get_int("to", 0) in _HALF_CODES:
        node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
    value = node.attributes.get("value")
    if value is not None and node.op_type in ("Constant", "ConstantOfShape") and value.as_tensor().dtype in _HALF:
        array = value.as_tensor().numpy().astype(np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(array))
