"""Turn a float32 graph into float16 or bfloat16, leaving in float32 what loses its meaning in half precision."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from lmmprune.lazy import derive, numbers, stored_of
from lmmprune.passes.graph.builder import SCORE
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.passes.graph.shapes import infer_shapes

HALF = {"float16": (ir.DataType.FLOAT16, np.float16), "bfloat16": (ir.DataType.BFLOAT16, ml_dtypes.bfloat16)}

# What positions and counts are computed with: a float16 CumSum is exact only up to 2048, an angle of position 3000 off.
_INDEX_MATH = {"Cast", "CumSum", "Mul", "Cos", "Sin", "Concat", "Unsqueeze"}


@dataclass(frozen=True, kw_only=True)
class CastFloat(GraphPass):
    """Cast weights, inputs and outputs; keep scores and index arithmetic in float32.

    Before: every float is float32
    After: the stream is half precision; nodes of the score, and what is computed from casts of integers (image places,
    rotary angles), stay float32 and are cast where they meet the stream. Norms keep float32 statistics (stash_type 1).
    """

    dtype: str

    def requires(self, model: ir.Model) -> None:
        """Check the type."""
        if self.dtype not in HALF:
            raise Refused(f"can't cast to '{self.dtype}': expected one of {', '.join(HALF)}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        half, array_type = HALF[self.dtype]
        kept = {node for node in model.graph if SCORE in node.metadata_props} | _index_nodes(model)
        floats = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT]
        streamed = [v for v in floats if any(node not in kept for node, _ in v.uses())]
        inputs = [v for v in model.graph.inputs if v.dtype == ir.DataType.FLOAT]
        if not streamed and not inputs:
            return ir.passes.PassResult(model, modified=False)
        for value in inputs:
            value.type = ir.TensorType(half)
        for value in streamed:
            stored = stored_of(value)
            new = derive(
                value,
                lambda array: array.astype(array_type, copy=False),
                dtype=half,
                shape=numbers(value.shape),
                name=f"{value.name}.{self.dtype}",
                # A checkpoint of this very type holds the result already.
                stored=stored if stored and stored.dtype == half else None,
            )
            model.graph.register_initializer(new)
            for node, index in list(value.uses()):
                if node not in kept:
                    node.replace_input_with(index, new)
            if not value.uses():
                assert value.name is not None
                del model.graph.initializers[value.name]
        _cast_borders(model, kept, half)
        outputs = [output for node in model.graph for output in node.outputs]
        for value in outputs:
            value.type = None
        infer_shapes(model)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check that the outputs have the type."""
        for value in [*model.graph.inputs, *model.graph.outputs]:
            if value.dtype == ir.DataType.FLOAT:
                raise Broken(f"'{value.name}' is still float32 after the cast to {self.dtype}")


def _index_nodes(model: ir.Model) -> set[ir.Node]:
    """Return the nodes that compute in float on what was an integer or a boolean."""
    found: set[ir.Node] = set()
    for node in model.graph:
        source = node.inputs[0] if node.inputs else None
        begins = (
            node.op_type == "Cast"
            and node.attributes.get_int("to", 0) == int(ir.DataType.FLOAT)
            and source is not None
            and source.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        )
        producers = {value.producer() for value in node.inputs if value is not None}
        if begins or (node.op_type in _INDEX_MATH and producers & found):
            found.add(node)
    return found


def _cast_borders(model: ir.Model, kept: set[ir.Node], half: ir.DataType) -> None:
    """Cast what float32 nodes hand to the stream: rotary angles, merged tokens."""
    for node in list(model.graph):
        if node not in kept:
            continue
        for output in node.outputs:
            users = [(user, index) for user, index in output.uses() if user not in kept]
            if not (users or output.is_graph_output()) or output.dtype != ir.DataType.FLOAT:
                continue
            cast = ir.node("Cast", [output], {"to": int(half)}, name=f"lmmprune/cast/{output.name}")
            cast.outputs[0].name = f"{output.name}.half"
            model.graph.insert_after(node, cast)
            for user, index in users:
                user.replace_input_with(index, cast.outputs[0])
            if output.is_graph_output():
                # A tower without a projector hands merged tokens over as they are.
                model.graph.outputs[model.graph.outputs.index(output)] = cast.outputs[0]
                output.name, cast.outputs[0].name = f"{output.name}.float32", output.name
