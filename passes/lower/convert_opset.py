"""Move a graph to another opset of ONNX without changing what it computes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx import defs, helper

from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken, Refused

# Operators that kept their form but not their meaning between the opset before and this one.
_CHANGED_MEANING = {
    ("GroupNormalization", 21): "scale and bias count channels instead of groups",
    ("GridSample", 20): "its modes have other names",
}
# An attribute that is an input since this opset; only the way up is written.
_NOW_INPUTS = {
    (f"Reduce{what}", 18): "axes"
    for what in ("Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
}


@dataclass(frozen=True, kw_only=True)
class ConvertOpset(GraphPass):
    """Write a graph in another opset, in either direction, if every node means the same there.

    Before: opset 23, ``DequantizeLinear(x, scale, zero, axis=1, block_size=0)``
    After: opset 20, ``DequantizeLinear(x, scale, zero, axis=1)``: attributes that the version doesn't know are dropped
    where they say what it does anyway

    Before: opset 17, ``ReduceMean(x, axes=[-1])``, ``Split(x)`` with three outputs
    After: opset 23, ``ReduceMean(x, [-1])``, ``Split(x, num_outputs=3)``

    Every node is compared with its operator's schema in ``onnx.defs``: that it exists, attributes, number of inputs and
    outputs, and the types of both.

    Attributes:
        version: The opset to write.
    """

    version: int

    def requires(self, model: ir.Model) -> None:
        """Check that every node can be said in that opset."""
        if self.version > defs.onnx_opset_version():
            raise Refused(f"opset {self.version} is newer than onnx knows ({defs.onnx_opset_version()}): update onnx")
        for node in _standard(model):
            _check(node, _opset(model), self.version)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        if _opset(model) == self.version:
            return ir.passes.PassResult(model, modified=False)
        for node in _standard(model):
            if (name := _becomes_input(node, _opset(model), self.version)) is not None:
                _move_to_input(model, node, name)
            if node.op_type == "Split" and _opset(model) < 18 <= self.version and _given(node) < 2:
                # Equal parts, as many as outputs, which has to be said since.
                node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))
            for name in set(node.attributes) - set(_schema(node, self.version).attributes):
                node.attributes.pop(name)
        model.graph.opset_imports[""] = self.version
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check the version."""
        if _opset(model) != self.version:
            raise Broken(f"the graph imports opset {_opset(model)}, expected {self.version}")


def _given(node: ir.Node) -> int:
    return sum(value is not None for value in node.inputs)


def _opset(model: ir.Model) -> int:
    return model.graph.opset_imports[""]


def _standard(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.domain in ("", "ai.onnx")]


def _schema(node: ir.Node, version: int) -> defs.OpSchema:
    try:
        return defs.get_schema(node.op_type, version)
    except defs.SchemaError:
        raise Refused(
            f"'{node.name}': opset {version} has no {node.op_type}: lower it first, or choose a target with it"
        ) from None


def _check(node: ir.Node, before: int, after: int) -> None:
    name, where = f"'{node.name}' ({node.op_type})", f"opset {after}"
    old, new = _schema(node, before), _schema(node, after)
    if old.since_version == new.since_version:
        return
    for (op_type, since), what in _CHANGED_MEANING.items():
        if op_type == node.op_type and min(before, after) < since <= max(before, after):
            raise Refused(f"{name} means something else in {where}: {what}")
    for key in set(node.attributes) - set(new.attributes) - {_becomes_input(node, before, after)}:
        if key not in old.attributes:
            raise Refused(f"{name} has an attribute '{key}', which opset {before} doesn't know: export it again")
        default = old.attributes[key].default_value
        if node.attributes[key].value != (helper.get_attribute_value(default) if default.name else None):
            raise Refused(f"{name} has {key}={node.attributes[key].value}, which {where} doesn't know")
    for kind, values, formal in (("inputs", node.inputs, new.inputs), ("outputs", node.outputs, new.outputs)):
        variadic = bool(formal) and formal[-1].option == defs.OpSchema.FormalParameterOption.Variadic
        if len(values) > len(formal) and not variadic:
            raise Refused(f"{name} has {len(values)} {kind}, {where} knows {len(formal)}")
        for index, value in enumerate(values):
            if value is None or value.dtype is None:
                continue
            if _type_name(value.dtype) not in formal[min(index, len(formal) - 1)].types:
                raise Refused(
                    f"{name} has '{value.name}' of type {value.dtype.name.lower()}, which {where} doesn't take there:"
                    " export with --dtype float16 or float32"
                )


def _becomes_input(node: ir.Node, before: int, after: int) -> str | None:
    """Return the attribute of a node that is an input in the later opset."""
    for (op_type, since), name in _NOW_INPUTS.items():
        if op_type == node.op_type and before < since <= after and name in node.attributes:
            return name
    return None


def _move_to_input(model: ir.Model, node: ir.Node, name: str) -> None:
    numbers = np.array(node.attributes.pop(name).as_ints(), np.int64)
    tensor = ir.Tensor(numbers, name=f"{node.outputs[0].name}/{name}")
    value = ir.Value(
        name=tensor.name, shape=ir.Shape(numbers.shape), type=ir.TensorType(ir.DataType.INT64), const_value=tensor
    )
    model.graph.register_initializer(value)
    node.resize_inputs(2)
    node.replace_input_with(1, value)


def _type_name(dtype: ir.DataType) -> str:
    return f"tensor({dtype.name.lower()})"
