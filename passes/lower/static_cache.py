"""Give the decoder's key/value cache a fixed length, so that a run-time updates it in place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lmmprune.names import CACHE_LENGTH
from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken
from lmmprune.passes.graph.shapes import infer_shapes, static_shape
from lmmprune.passes.lower.cache_inputs import check_cuts, counts_of, join_of, with_length

"""Input, int64 ``[1]``: tokens that have entered the decoder so far; 0 before the prefill."""
SCATTER_OPSET = 24
"""TensorScatter enters ONNX here."""
_LENGTH_AXIS = 2
_MASK = 3  # input of Attention


@dataclass(frozen=True, kw_only=True)
class StaticCache(GraphPass):
    """Write new keys and values into a cache of fixed length, behind the tokens that it holds.

    Before: ``present [B,Hk,past+S,D] = Concat(past [B,Hk,past,D], new [B,Hk,S,D])``
    After: ``present [B,Hk,M,D] = TensorScatter(past [B,Hk,M,D], new, length)``

    ``length`` is the input ``cache_length`` less what the cuts before the layer have taken away; the causal mask, which
    compares places, hides the rest of the cache as it hides the future. Attention takes that mask without an ``Expand``
    before it. A run-time that gives past and present the same memory saves the copy of the whole cache per token. Needs
    opset 24.

    Attributes:
        past: Names of the inputs that are the keys and the values of each layer, ``[B,Hk,past,D]``.
        capacity: Tokens that the layers before any cut have room for, of the prompt and of the answer.
        removed: How many tokens of the sequence are gone when it reaches the attention of each layer; so much shorter
            is that layer's cache (M).

    Reference: ONNX operators TensorScatter-24, Attention-24.
    """

    past: tuple[tuple[str, str], ...]
    capacity: int
    removed: tuple[int, ...]

    def requires(self, model: ir.Model) -> None:
        """Check that every layer has a cache that grows by concatenation, and room behind the cuts."""
        check_cuts(self.past, self.removed, self.capacity)
        for past in self._values(model):
            join_of(past)
            counts_of(past)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        length = ir.Value(name=CACHE_LENGTH, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
        b = Builder("lmmprune/cache", score=False)
        lengths = {
            count: b.op("Max", b.op("Sub", length, [count]), [0]) if count else length for count in set(self.removed)
        }
        totals = {count: b.constant(self.capacity - count, np.int64) for count in lengths}
        b.prepend_to(model.graph)
        model.graph.inputs.append(length)
        values = self._values(model)
        for past, count in zip(values, (count for count in self.removed for _ in range(2)), strict=True):
            _count_from(past, lengths[count], totals[count])
            _scatter(past, lengths[count], self.capacity - count)
        _leave_masks_narrow(model.graph)
        RemoveUnusedNodesPass()(model)
        model.graph.opset_imports[""] = max(model.graph.opset_imports[""], SCATTER_OPSET)
        infer_shapes(model, stale=[node.outputs[0] for value in (*values, length) for node, _ in value.uses()])
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check that nothing reads the length of a cache from its shape, that no cache grows, that masks are narrow."""
        for past in self._values(model):
            users = {node.op_type for node, _ in past.uses()}
            if users != {"TensorScatter"}:
                raise Broken(f"'{past.name}' is read by {', '.join(sorted(users))}, expected TensorScatter alone")
        if left := [node.name for node, _ in _expanded_masks(model.graph)]:
            raise Broken(f"the masks of {', '.join(map(str, left))} are expanded, expected none: Attention broadcasts")

    def _values(self, model: ir.Model) -> list[ir.Value]:
        inputs = {value.name: value for value in model.graph.inputs}
        return [inputs[name] for pair in self.past for name in pair]


def _count_from(past: ir.Value, length: ir.Value, total: ir.Value) -> None:
    """Replace what the graph reads from a cache's shape by numbers: how much it holds, and how long it is."""
    for counted in counts_of(past):
        for value in (counted, *(node.outputs[0] for node, _ in counted.uses() if node.op_type == "Squeeze")):
            for node, _ in list(value.uses()):
                # Together with the number of new tokens it is how long present is.
                if node.op_type == "Add" and node.outputs[0].shape in ([], [1]):
                    _stand_for(node, total)
        ir.convenience.replace_all_uses_with(counted, length)


def _leave_masks_narrow(graph: ir.Graph) -> None:
    # TensorRT-RTX 1.7.1 doesn't build an expanded mask of a fixed length for steps of 1..2 tokens (seen): "Graph
    # contains more than one op named expand [profile 1].1_iota".
    for attention, expand in list(_expanded_masks(graph)):
        attention.replace_input_with(_MASK, expand.inputs[0])


def _expanded_masks(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Yield each Attention whose mask is expanded over batch or heads only, and the Expand."""
    for node in graph:
        mask = node.inputs[_MASK] if node.op_type == "Attention" and len(node.inputs) > _MASK else None
        expand = mask.producer() if mask is not None else None
        if expand is None or expand.op_type != "Expand":
            continue
        narrow = expand.inputs[0]
        # Queries and keys have to be there: ONNX Runtime pads a mask with too few keys instead of repeating it.
        if narrow is not None and narrow.shape is not None and len(narrow.shape) == 4 and 1 not in narrow.shape[2:]:
            yield node, expand


def _stand_for(node: ir.Node, number: ir.Value) -> None:
    """Put a constant in the place of a sum, in its shape."""
    old = node.outputs[0]
    b = Builder(f"{node.name}/capacity", score=False)
    new = b.op("Reshape", number, np.array(static_shape(old), np.int64))
    assert node.graph is not None
    b.insert_after(node.graph, node)
    new.shape, new.type = old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new)


def _scatter(past: ir.Value, length: ir.Value, capacity: int) -> None:
    join = join_of(past)
    new, graph = join.inputs[1], join.graph
    assert new is not None
    assert graph is not None
    past.shape = with_length(past, capacity)
    rows = past.shape[0]
    if rows != 1:
        # All rows are filled alike; the operator wants a place for each.
        b = Builder(f"{join.name}/rows", score=False)
        length = b.op("Expand", length, [rows])
        b.insert_before(graph, join)
    node = ir.node("TensorScatter", [past, new, length], {"axis": _LENGTH_AXIS}, name=f"{join.name}/in_place")
    old, present = join.outputs[0], node.outputs[0]
    graph.insert_after(join, node)
    ir.convenience.replace_all_uses_with(old, present, replace_graph_outputs=True)
    present.name, present.type = old.name, old.type
    graph.remove(join, safe=True)
