"""Give the inputs of another exporter's graph numbers and compute everything that follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer

from lmmprune.lazy import weights_out_of_sight
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.passes.graph.shapes import infer_shapes
from lmmprune.passes.lower.freeze_shapes import all_values

# Entries of a tensor that index arithmetic may have; whatever is larger is data.
_SMALL = 1 << 16


@dataclass(frozen=True, kw_only=True)
class FoldShapes(GraphPass):
    """Freeze the inputs and fold what shapes are computed with, so that every dimension is a number.

    Before: ``Reshape(x, Concat(Gather(Shape(pixel_values [batch,3,H,W]), 0), -1, 64))``
    After: ``Reshape(x, [1, -1, 64])``, ``pixel_values [1,3,336,336]``

    Weights bound lazily are not read.

    Attributes:
        shapes: Input -> its shape.
    """

    shapes: Mapping[str, Sequence[int]]

    def requires(self, model: ir.Model) -> None:
        """Check that the shapes are those of the inputs, with numbers in the place of symbols."""
        for value in model.graph.inputs:
            if value.name not in self.shapes:
                raise Refused(f"no shape was given for the input '{value.name}' {value.shape}")
            given = self.shapes[str(value.name)]
            if value.shape is not None and not _fits(value.shape, given):
                raise Refused(f"input '{value.name}' has shape {value.shape}: it can't be {list(given)}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        before = [(v.name, str(v.shape)) for v in all_values(model)]
        for value in model.graph.inputs:
            value.shape = ir.Shape(self.shapes[str(value.name)])
        for node in model.graph:
            for output in node.outputs:
                output.shape = None
        with weights_out_of_sight(model):
            optimizer.fold_constants(
                model,
                onnx_shape_inference=True,
                input_size_limit=_SMALL,
                output_size_limit=_SMALL,
                # Kept by default, for its size; here it is the target of an Expand.
                should_fold=lambda node: True if node.op_type == "ConstantOfShape" else None,
            )
        common.RemoveUnusedNodesPass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        infer_shapes(model)
        return ir.passes.PassResult(model, modified=before != [(v.name, str(v.shape)) for v in all_values(model)])

    def ensures(self, model: ir.Model) -> None:
        """Check every value of the graph."""
        for value in all_values(model):
            if value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
                raise Broken(
                    f"'{value.name}' has shape {value.shape} though every input has numbers: its size depends on data,"
                    " which a static graph can't have"
                )


def _fits(found: ir.Shape, given: Sequence[int]) -> bool:
    return len(found) == len(given) and all(
        not isinstance(mine, int) or mine == theirs for mine, theirs in zip(found, given, strict=True)
    )
