"""Bring a traced graph into canonical form: opset 23, one node per attention, norm and rotation, weights on disk."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer
from onnxscript.rewriter import onnx_fusions

from lmmprune.lazy import Origin, derive, is_lazy, numbers, origin_of, stored_of, weights_out_of_sight


def canonicalize(model: ir.Model) -> ir.Model:
    """Fold what is constant, fuse what opset 23 has a name for, and name nodes after their outputs.

    Weights bound by ``trace.bind`` are never read: their transposes are composed into the reader.
    """
    transpose_weights(model)
    with weights_out_of_sight(model):
        optimizer.optimize_ir(model)
        onnx_fusions.fuse(model)
    ir.passes.Sequential(
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.TopologicalSortPass(),
        common.NameFixPass(),
        # Fused nodes come without types.
        common.ShapeInferencePass(),
    )(model)
    for node in model.graph:
        # Folding leaves its diary here; nothing behind this line reads it.
        node.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    return model


def transpose_weights(model: ir.Model) -> None:
    """Replace ``Transpose(weight)`` by a weight whose reader transposes.

    Before: ``MatMul(x, Transpose(w [out,in]))``   After: ``MatMul(x, w.T [in,out])``
    """
    for node in list(model.graph):
        if node.op_type != "Transpose" or not is_lazy(node.inputs[0]):
            continue
        weight, old = node.inputs[0], node.outputs[0]
        assert weight is not None
        perm = node.attributes["perm"].as_ints()
        new = transposed(weight, tuple(perm))
        assert new.name is not None
        assert weight.name is not None
        # A weight that is transposed twice (tied embeddings) is stored once.
        new = model.graph.initializers.get(new.name, new)
        if new.name not in model.graph.initializers:
            model.graph.register_initializer(new)
        ir.convenience.replace_all_uses_with(old, new)
        model.graph.remove(node, safe=True)
        if not weight.uses():
            del model.graph.initializers[weight.name]


def transposed(weight: ir.Value, perm: tuple[int, ...]) -> ir.Value:
    """Return a weight whose reader transposes another one's values."""
    shape = numbers(weight.shape)
    stored = stored_of(weight)
    if stored is not None:
        before = stored.perm or tuple(range(len(perm)))
        stored = dataclasses.replace(stored, perm=tuple(before[axis] for axis in perm))
    origin = origin_of(weight)
    if origin is not None:
        before = origin.perm or tuple(range(len(perm)))
        origin = Origin(origin.weight, tuple(before[axis] for axis in perm))
    return derive(
        weight,
        lambda array: array.transpose(perm),
        dtype=ir.DataType.FLOAT,
        shape=[shape[axis] for axis in perm],
        name=f"{weight.name}.T",
        stored=stored,
        origin=origin,
    )
