"""Let a tower that hands out one vector per picture hand out the tokens of a layer as well."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.passes.find.layers import find_layers
from lmmprune.passes.foreign.find_features import check_count, depth_of, token_outputs
from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken
from lmmprune.passes.graph.shapes import static_shape


@dataclass(frozen=True, kw_only=True)
class HandOutTokens(GraphPass):
    """Add a hidden state to the outputs of a graph none of whose outputs holds tokens.

    Before: ``... -> pooled [B,C]``   After: the same, and ``hidden_states.N [B,T,C]``

    Attributes:
        layer: Number of the hidden state as transformers counts them, -1 behind the last layer.
        grid: Patches, rows and columns.
    """

    layer: int
    grid: tuple[int, int]

    @staticmethod
    def name(depth: int) -> str:
        """Return the name of the output behind so many layers."""
        return f"hidden_states.{depth}"

    def requires(self, model: ir.Model) -> None:
        """Check that the layers' tokens are those of the grid."""
        layers = find_layers(model, "vision")
        if not token_outputs(model, layers, self.grid[0] * self.grid[1]):
            check_count(static_shape(layers[-1].q)[2], self.grid[0] * self.grid[1])

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        layers = find_layers(model, "vision")
        if token_outputs(model, layers, self.grid[0] * self.grid[1]):
            return ir.passes.PassResult(model, modified=False)
        depth = depth_of(self.layer, len(layers))
        out = layers[depth - 1].out
        b = Builder(f"{out.name}/handed_out", score=False)
        copy = b.op("Identity", out)
        copy.name, copy.shape, copy.type = self.name(depth), out.shape, out.type
        b.insert_after(model.graph, out.producer())
        model.graph.outputs.append(copy)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check that there are tokens."""
        if not token_outputs(model, find_layers(model, "vision"), self.grid[0] * self.grid[1]):
            raise Broken(f"the tokens of layer {self.layer} aren't those of a grid of {self.grid} patches")
