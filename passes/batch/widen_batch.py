"""Turn a graph of one row into the graph of B rows that know nothing of each other, whatever a method wrote into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lmmprune.passes.batch import axis_rules, value_rules
from lmmprune.passes.batch.rows import Widening, dims_of
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.passes.graph.shapes import infer_shapes

_ELEMENTWISE = (
    *("Abs", "Add", "And", "Cast", "Ceil", "Clip", "Cos", "Div", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater"),
    *("GreaterOrEqual", "HardSigmoid", "Identity", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Min"),
    *("Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus"),
    *("Sqrt", "Sub", "Sum", "Tanh", "Where", "Xor", "QuantizeLinear", "DequantizeLinear"),
)
_REDUCTIONS = (
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceLogSumExp"),
    *("ReduceSumSquare", "ReduceLogSum"),
)

RULES: Mapping[str, Callable[[Widening], None]] = {
    **dict.fromkeys(_ELEMENTWISE, value_rules.elementwise),
    **dict.fromkeys(_REDUCTIONS, axis_rules.reduce_axes),
    **dict.fromkeys(("Softmax", "LogSoftmax", "TopK"), partial(axis_rules.along_axis, default=-1)),
    **dict.fromkeys(("ArgMax", "ArgMin", "Split", "CumSum"), partial(axis_rules.along_axis, default=0)),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), axis_rules.normalize),
    **dict.fromkeys(("MatMul", "MatMulInteger"), value_rules.product),
    **dict.fromkeys(("Attention", "Conv", "RotaryEmbedding"), value_rules.per_image),
    "Concat": axis_rules.concat,
    "Expand": value_rules.expand,
    "Gather": value_rules.gather,
    "Reshape": value_rules.reshape,
    "Shape": axis_rules.shape_of_a_row,
    "Slice": axis_rules.slice_rows,
    "Squeeze": axis_rules.squeeze,
    "Transpose": axis_rules.transpose,
    "Unsqueeze": axis_rules.unsqueeze,
}
"""Operator -> how the node that differs by row is written for all rows."""


@dataclass(frozen=True, kw_only=True)
class WidenBatch(GraphPass):
    """Give every input and output of a graph B rows.

    Before: ``x [1,T,C], ids [1,T] -> y [1,K,C]``
    After: ``x [B,T,C], ids [B,T] -> y [B,K,C]``, row b of which is what the graph before makes of row b alone

    Where the graph has an axis of 1 in front, the rows take it, and nodes stay as they are; where it has none (places
    of kept tokens ``[K]``, patches in windows), rows stand in front of all axes. What doesn't differ by row (weights,
    lengths, index arithmetic) is computed once. An operator without a rule is refused by name.

    Attributes:
        batch: B, 2 or more.
    """

    batch: int

    def requires(self, model: ir.Model) -> None:
        """Check that all inputs have an axis of 1 for the rows."""
        if self.batch < 2:
            raise Refused(f"a batch of {self.batch}: expected 2 or more")
        for value in model.graph.inputs:
            _row_axis(value)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        graph = model.graph
        w = Widening(graph, self.batch)
        results = [(value, str(value.name), dims_of(value)) for value in graph.outputs]
        nodes = list(graph)
        w.node = nodes[0]
        for value in graph.inputs:
            self._widen_input(w, value)
        for node in nodes:
            w.node = node
            # The length of what a row has is the same for all of them.
            if not any(w.varies(value) for value in node.inputs):
                continue
            rule = RULES.get(node.op_type)
            if rule is None or node.domain not in ("", "ai.onnx"):
                raise w.refuse("can't be computed for several rows")
            rule(w)
        self._name_outputs(w, results)
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check that every input and output has B rows, and infer all shapes anew beside those that the rules say."""
        for value in (*model.graph.inputs, *model.graph.outputs):
            if self.batch not in dims_of(value)[:2]:
                raise Broken(f"'{value.name}' has the shape {value.shape}: expected {self.batch} rows")
        inferred = model.clone()
        made = [value for node in inferred.graph for value in node.outputs]
        infer_shapes(inferred, stale=made)
        found = {value.name: dims_of(value) for value in made}
        for node in model.graph:
            for value in node.outputs:
                said, other = dims_of(value), found[value.name]
                pairs = zip(said, other, strict=False)
                if len(said) != len(other) or any(
                    isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs
                ):
                    raise Broken(f"'{value.name}' ({node.op_type}) has the shape {list(other)}: expected {list(said)}")

    def _widen_input(self, w: Widening, value: ir.Value) -> None:
        axis, users, dims = _row_axis(value), list(value.uses()), dims_of(value)
        if axis == 0:
            w.put(value, value, own=True)
            return
        # Positions of frame, row and column [3,1,T] are fed as [3,B,T].
        value.shape = ir.Shape([*dims[:axis], self.batch, *dims[axis + 1 :]])
        perm = [axis, *(i for i in range(len(dims)) if i != axis)]
        rest = [dim for i, dim in enumerate(dims) if i != axis]
        turned = w.ops("Transpose", [value], like=value, dims=[self.batch, *rest], perm=perm)
        raised = w.ops("Unsqueeze", [turned, w.numbers([axis + 1])], like=value, dims=[self.batch, *dims])
        stand_in = ir.Value(name=f"{value.name}/row", shape=ir.Shape(dims), type=value.type)
        for user, index in users:
            user.replace_input_with(index, stand_in)
        w.put(stand_in, raised, own=False)

    def _name_outputs(self, w: Widening, results: list[tuple[ir.Value, str, tuple[object, ...]]]) -> None:
        """Let the outputs of all rows have the names that those of one row had."""
        end = ir.node("Identity", [results[0][0]], name="lmmprune/batch/end")
        w.graph.append(end)
        w.node = end
        for index, (value, name, dims) in enumerate(results):
            if not w.varies(value) and dims[0] != 1:
                raise Refused(f"--batch: the output '{name}' has the shape {list(dims)}: expected 1 row")
            wide = w.own(value)
            if wide is not value:
                value.name = f"{name}/row"
            wide.name = name
            if wide.type is None:
                wide.type = value.type
            w.graph.outputs[index] = wide
        w.graph.remove(end, safe=True)


def _row_axis(value: ir.Value) -> int:
    """Return the axis of an input that becomes the rows.

    Raises:
        Refused: It has none.
    """
    dims = dims_of(value)
    for axis in range(min(2, len(dims))):
        if dims[axis] == 1:
            return axis
    raise Refused(
        f"--batch: '{value.name}' has the shape {list(dims)}, which has no axis of 1 for rows: export without --batch"
    )
