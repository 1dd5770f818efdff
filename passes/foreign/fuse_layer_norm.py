"""Find the layer normalizations that exporters before opset 17 wrote as primitives, and write each as one node.

onnxscript has rules for the same (seen in 0.7.2): they want ``keepdims`` spelled out, the axis as -1 and each sum and
product in one order of its two sides, and take any factor for the scale, a whole activation too.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lmmprune.passes.foreign.layouts import scalar
from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.passes.graph.shapes import infer_shapes, static_shape

_OPSET = 18


@dataclass(frozen=True, kw_only=True)
class FuseLayerNorm(GraphPass):
    """Write every decomposed layer normalization over the last axis, with scale and shift, as ``LayerNormalization``.

    Before: ``d = x - ReduceMean(x, [-1])``, ``d / Sqrt(ReduceMean(d ** 2, [-1]) + epsilon) * scale + shift``
    After: ``LayerNormalization(x, scale, shift, axis=-1, epsilon)``

    Reference: Ba et al., Layer Normalization, 2016, arXiv 1607.06450; ONNX operator LayerNormalization-17.
    """

    def requires(self, model: ir.Model) -> None:
        """Check the opset: the axes of a reduction are an input."""
        found = model.graph.opset_imports[""]
        if found < _OPSET:
            raise Refused(f"expected opset {_OPSET} or newer, the graph has {found}: convert it")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        found = False
        for node in [node for node in model.graph if node.op_type == "Sqrt"]:
            # One at a time: the next one often reads what this one makes.
            if (norm := _around(node)) is not None:
                _fuse(model, norm)
                found = True
        if found:
            RemoveUnusedNodesPass()(model)
            infer_shapes(model)
        return ir.passes.PassResult(model, modified=found)

    def ensures(self, model: ir.Model) -> None:
        """Check that none is left."""
        for node in model.graph:
            if node.op_type == "Sqrt" and _around(node) is not None:
                raise Broken(f"'{node.name}' is still part of a decomposed layer normalization")


@dataclass(frozen=True, kw_only=True)
class _Norm:
    x: ir.Value
    scale: ir.Value
    shift: ir.Value
    epsilon: float
    out: ir.Value


def _fuse(model: ir.Model, norm: _Norm) -> None:
    b = Builder(str(norm.out.name), score=False)
    new = b.op("LayerNormalization", norm.x, norm.scale, norm.shift, axis=-1, epsilon=norm.epsilon)
    b.insert_after(model.graph, norm.out.producer())
    new.name, norm.out.name, new.shape, new.type = norm.out.name, None, norm.out.shape, norm.out.type
    ir.convenience.replace_all_uses_with(norm.out, new, replace_graph_outputs=True)


def _around(sqrt: ir.Node) -> _Norm | None:
    """Return the normalization that a square root is part of, None if it is something else's."""
    variance, epsilon = _with_constant(_maker(sqrt.inputs[0], "Add"))
    squares = _mean_of(variance)
    centred = _base_of_square(squares)
    x = _centred(centred)
    if x is None or centred is None or epsilon is None:
        return None
    normalized = _only(sqrt.outputs[0], "Div", 1, other=centred)
    if normalized is None and (inverse := _only(sqrt.outputs[0], "Reciprocal", 0)) is not None:
        normalized = _only(inverse, "Mul", None, other=centred)
    scaled, scale = _with_weight(normalized, "Mul", x)
    out, shift = _with_weight(scaled, "Add", x)
    if out is None or scale is None or shift is None:
        return None
    return _Norm(x=x, scale=scale, shift=shift, epsilon=epsilon, out=out)


def _maker(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type in op_types else None


def _with_constant(add: ir.Node | None) -> tuple[ir.Value | None, float | None]:
    """Return the two sides of ``value + constant``."""
    if add is None:
        return None, None
    left, right = add.inputs
    if (number := scalar(right)) is not None:
        return left, number
    return right, scalar(left)


def _mean_of(value: ir.Value | None) -> ir.Value | None:
    """Return what a value is the mean of over the last axis, kept as one."""
    node = _maker(value, "ReduceMean")
    if node is None or node.attributes.get_int("keepdims", 1) != 1 or len(node.inputs) < 2:
        return None
    source, axes = node.inputs
    if source is None or axes is None or axes.const_value is None or axes.const_value.size != 1:
        return None
    axis = int(axes.const_value.numpy().reshape(()))
    return source if axis in (-1, len(static_shape(source)) - 1) else None


def _base_of_square(value: ir.Value | None) -> ir.Value | None:
    node = _maker(value, "Pow", "Mul")
    if node is None:
        return None
    base, other = node.inputs
    square = scalar(other) == 2 if node.op_type == "Pow" else base is other
    return base if square else None


def _centred(value: ir.Value | None) -> ir.Value | None:
    """Return x of ``x - mean(x)``."""
    node = _maker(value, "Sub")
    if node is None:
        return None
    x, mean = node.inputs
    return x if x is not None and _mean_of(mean) is x else None


def _only(value: ir.Value, op_type: str, place: int | None, *, other: ir.Value | None = None) -> ir.Value | None:
    """Return the result of the one node that reads a value, at a place and beside another value."""
    uses = list(value.uses())
    if len(uses) != 1 or uses[0][0].op_type != op_type or place not in (None, uses[0][1]):
        return None
    node, index = uses[0]
    if other is not None and node.inputs[1 - index] is not other:
        return None
    return node.outputs[0]


def _with_weight(value: ir.Value | None, op_type: str, x: ir.Value) -> tuple[ir.Value | None, ir.Value | None]:
    """Return what becomes of a value with a weight per channel, and the weight."""
    out = None if value is None else _only(value, op_type, None)
    if out is None:
        return None, None
    node = out.producer()
    assert node is not None
    weight = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    if weight is None or not weight.is_initializer() or static_shape(weight) != static_shape(x)[-1:]:
        return None, None
    return out, weight
