"""Let rows of a batch be of unequal length: what fills the shorter ones is seen by no token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lmmprune.names import METHOD, PADDING, READS_TEXT
from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken, Refused

_MASK = 3  # input of Attention


@dataclass(frozen=True, kw_only=True)
class MaskPadding(GraphPass):
    """Hide a stretch of the sequence, whose length is an input, from all tokens.

    Before: ``Attention(q, k, v, causal)``
    After: ``Attention(q, k, v, causal & (place < begin | place >= begin + padding))``, ``padding [1]`` int64 an input

    Scores read the same mask, so they see no padding either. The stretch lies behind a token at least: a token of the
    padding itself sees that one, and a softmax over nothing, which isn't a number, never comes about.

    Attributes:
        begin: Place of the first token of the padding in the sequence that enters the decoder, 1 or more.
        removed: How many tokens of the sequence, all of them before that place, are gone when it reaches the attention
            of each layer.
    """

    begin: int
    removed: Sequence[int]

    def requires(self, model: ir.Model) -> None:
        """Check that every layer has a causal mask of booleans, and no input of that name is there."""
        if any(value.name == PADDING for value in model.graph.inputs):
            raise Refused(f"the decoder has an input '{PADDING}' already: start from the graph of one row")
        text = next((node for node in model.graph if READS_TEXT in node.metadata_props), None)
        if text is not None:
            method = text.metadata_props.get(METHOD, "the method")
            raise Refused(
                f"--batch: '{method}' scores by every word of the question ('{text.name}'), and rows of a batch are"
                " padded there: use one that scores by the last token or by the picture alone (fastv, pyramiddrop, aim,"
                " v2drop), or that cuts before the decoder's layers"
            )
        if len(found := _attentions(model)) != len(self.removed):
            raise Refused(f"the decoder has {len(found)} Attention nodes, expected {len(self.removed)}, one per layer")
        for node in found:
            mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
            if mask is None or mask.dtype != ir.DataType.BOOL:
                raise Refused(f"'{node.name}' has no mask of booleans: --batch hides padding there")
        if self.begin - max(self.removed, default=0) < 1:
            raise Refused(f"padding at place {self.begin - max(self.removed)}: expected a token before it")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        graph = model.graph
        padding = ir.Value(name=PADDING, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
        graph.inputs.append(padding)
        begins: dict[ir.Value, int] = {}
        for node, removed in zip(_attentions(model), self.removed, strict=True):
            mask = node.inputs[_MASK]
            assert mask is not None
            if begins.setdefault(mask, self.begin - removed) != self.begin - removed:
                raise Refused(f"layers before and behind a cut share the mask '{mask.name}'")
        for mask, begin in begins.items():
            self._hide(graph, mask, padding, begin)
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check that every layer's mask depends on the padding."""
        [padding] = [value for value in model.graph.inputs if value.name == PADDING]
        reached, work = set[ir.Value](), [padding]
        while work:
            value = work.pop()
            if value not in reached:
                reached.add(value)
                work.extend(output for node, _ in value.uses() for output in node.outputs)
        for node in _attentions(model):
            if node.inputs[_MASK] not in reached:
                raise Broken(f"the mask of '{node.name}' doesn't depend on '{PADDING}'")

    def _hide(self, graph: ir.Graph, mask: ir.Value, padding: ir.Value, begin: int) -> None:
        users, producer = list(mask.uses()), mask.producer()
        assert producer is not None
        b = Builder(f"lmmprune/padding/{begin}", score=False)
        # An Expand over batch and heads would be in the way of rows; Attention broadcasts by itself.
        causal = producer.inputs[0] if producer.op_type == "Expand" else mask
        assert causal is not None
        if causal.shape is None or len(causal.shape) != 4 or 1 in tuple(causal.shape)[2:]:
            causal = mask
        queries, keyed = (None, None) if causal.shape is None else tuple(causal.shape)[2:]
        integers, booleans = ir.TensorType(ir.DataType.INT64), ir.TensorType(ir.DataType.BOOL)

        def write(op_type: str, kind: ir.TensorType, dims: Sequence[Any], *inputs: Any, **attributes: Any) -> ir.Value:
            # Inference would lose the names of lengths behind a cut.
            value = b.op(op_type, *inputs, **attributes)
            value.type, value.shape = kind, ir.Shape(dims)
            return value

        zero, one = b.constant(0, "int64"), b.constant(1, "int64")
        count = write("Shape", integers, [1], causal, start=3, end=4)
        keys = write("Range", integers, [keyed], zero, write("Squeeze", integers, [], count, [0]), one)
        places = write("Unsqueeze", integers, [1, 1, 1, keyed], keys, [0, 1, 2])
        behind = write("Add", integers, [1], padding, b.constant([begin]))
        end = write("Reshape", integers, [1, 1, 1, 1], behind, [1, 1, 1, 1])
        before = write("Less", booleans, [1, 1, 1, keyed], places, b.constant([begin]))
        after = write("GreaterOrEqual", booleans, [1, 1, 1, keyed], places, end)
        seen = write("Or", booleans, [1, 1, 1, keyed], before, after)
        both = write("And", booleans, [1, 1, queries, keyed], causal, seen)
        b.insert_after(graph, producer)
        for node, index in users:
            node.replace_input_with(index, both)


def _attentions(model: ir.Model) -> list[ir.Node]:
    """Return the attention of each layer; scores are written as products."""
    return [node for node in model.graph if node.op_type == "Attention"]
