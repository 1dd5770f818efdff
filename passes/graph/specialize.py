"""A copy of a graph for known sizes, every shape a number: what inference alone can't tell of index arithmetic."""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnxscript import optimizer

from lmmprune.lazy import is_lazy
from lmmprune.passes.graph.shapes import infer_shapes
from lmmprune.passes.graph.standard_operators import as_standard_operators


def specialize(model: ir.Model, *, seq: int, past: int = 0, image_tokens: int = 0) -> ir.Model:
    """Return a copy whose sequence and cache have given lengths; its weights can't be read.

    Args:
        model: A decoder; stays as it is.
        seq: Tokens that come in.
        past: Length of every cache.
        image_tokens: Visual tokens that come in, where the graph leaves that open.
    """
    # Only what index arithmetic needs is folded: without values, no weight can be read.
    copy = model.clone()
    as_standard_operators(copy)
    for value in copy.graph.initializers.values():
        if is_lazy(value) or (value.const_value is not None and value.const_value.size > _SMALL):
            value.const_value = None
    for value in copy.graph.inputs:
        assert value.shape is not None
        sizes = {"past": past, "image": image_tokens, "seq": seq}
        # Behind cuts, caches have lengths of their own: past_3.
        dims = [dim if isinstance(dim, int) else sizes[str(dim.value).split("_")[0]] for dim in value.shape]
        value.shape = ir.Shape(dims)
    for node in copy.graph:
        for output in node.outputs:
            output.shape = None
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        optimizer.fold_constants(copy, onnx_shape_inference=True, input_size_limit=_SMALL, output_size_limit=_SMALL)
    finally:
        logger.setLevel(level)
    infer_shapes(copy)
    return copy


_SMALL = 1 << 16
