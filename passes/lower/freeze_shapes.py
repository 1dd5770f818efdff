"""Give every dimension of a graph a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.passes.graph.shapes import infer_shapes


@dataclass(frozen=True, kw_only=True)
class FreezeShapes(GraphPass):
    """Replace symbolic dimensions of the inputs by numbers and prove that none is left anywhere.

    Before: ``pixel_values [batch,3,336,336]``   After: ``pixel_values [1,3,336,336]``, all values static
    """

    dims: Mapping[str, int] = field(default_factory=dict)

    def requires(self, model: ir.Model) -> None:
        """Check that every symbol of the inputs is given."""
        for value in model.graph.inputs:
            for dim in value.shape or ():
                if isinstance(dim, ir.SymbolicDim) and dim.value not in self.dims:
                    raise Refused(
                        f"input '{value.name}' has the symbolic dimension '{dim.value}': give it a number"
                        f" (known: {', '.join(map(str, self.dims)) or 'none'})"
                    )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the inputs' shapes and infer the rest anew."""
        changed = False
        for value in model.graph.inputs:
            if value.shape is None or all(isinstance(dim, int) for dim in value.shape):
                continue
            value.shape = ir.Shape(
                [self.dims[str(dim.value)] if isinstance(dim, ir.SymbolicDim) else dim for dim in value.shape]
            )
            changed = True
        if changed:
            infer_shapes(model, stale=[output for node in model.graph for output in node.outputs])
        return ir.passes.PassResult(model, modified=changed)

    def ensures(self, model: ir.Model) -> None:
        """Check every value of the graph."""
        for value in all_values(model):
            if value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
                raise Broken(f"'{value.name}' has shape {value.shape} after freezing, expected numbers only")


def all_values(model: ir.Model) -> list[ir.Value]:
    """Return the inputs, initializers and node outputs of a model's main graph."""
    inner = [output for node in model.graph for output in node.outputs]
    return [*model.graph.inputs, *model.graph.initializers.values(), *inner]
