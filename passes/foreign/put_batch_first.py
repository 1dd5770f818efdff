"""Put pictures first: bring a stream of tokens that comes in another order, or as a matrix, into ``[B,T,C]``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from lmmprune.passes.foreign.layouts import Order, every_place, order_of_rows
from lmmprune.passes.foreign.row_operators import RowNode, write_on_tokens
from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.moves import is_move, moved
from lmmprune.passes.graph.refusals import Broken
from lmmprune.passes.graph.shapes import infer_shapes, static_shape


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """A value as rows in an order of their own.

    Attributes:
        base: The same rows as ``[B,T,C]``.
        order: Order of the value's rows.
        as_is: Whether the value itself stays: it only moves what is ``[B,T,C]`` anyway.
    """

    base: ir.Value
    order: Order
    as_is: bool


@dataclass(frozen=True, kw_only=True)
class PutBatchFirst(GraphPass):
    """Let everything that treats tokens one by one compute on ``[B,T,C]``.

    Before: ``x [B,T,C] -> Transpose -> [T,B,C] -> LayerNormalization -> MatMul -> Add -> Transpose -> [B,T,C]``, or
    with ``Reshape`` to ``[B*T,C]`` in the place of the first Transpose
    After: ``x -> LayerNormalization -> MatMul -> Add``; what can't be said on ``[B,T,C]`` gets its own order back

    Attributes:
        batch: B.
    """

    batch: int

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        changed = False
        # What is written for one node may be what another could not be said without.
        while _Rewriting(model, self.batch).run():
            RemoveUnusedNodesPass()(model)
            TopologicalSortPass()(model)
            infer_shapes(model)
            changed = True
        return ir.passes.PassResult(model, modified=changed)

    def ensures(self, model: ir.Model) -> None:
        """Check that a second run would find nothing."""
        if _Rewriting(model.clone(), self.batch).run():
            raise Broken("some tokens are still in another order than [B,T,C]")


class _Rewriting:
    def __init__(self, model: ir.Model, batch: int) -> None:
        self._graph = model.graph
        self._batch = batch
        self._rows: dict[ir.Value, _Rows] = {}
        self._converted: set[ir.Node] = set()

    def run(self) -> bool:
        changed = False
        for node in list(self._graph):
            b = Builder(f"{node.outputs[0].name}/batch_first", score=False)
            if is_move(node) and self._follows(node):
                if node.outputs[0] in self._rows:
                    continue
            elif self._converts(b, node):
                b.insert_after(self._graph, node)
            else:
                continue
            changed = True
            self._converted.add(node)
        for value in list(self._rows):
            self._give_back(value)
        return changed

    def _follows(self, node: ir.Node) -> bool:
        """Follow rows through a node that moves them whole; return whether it does."""
        source, value = node.inputs[0], node.outputs[0]
        assert source is not None
        known = self._rows.get(source) or self._natural(source)
        if known is None or len(node.outputs) > 1:
            return False
        batch, tokens, channels = static_shape(known.base)
        shape = static_shape(value)
        if shape[-1:] != (channels,) or np.prod(shape) != batch * tokens * channels:
            return False
        found = moved(value, every_place(static_shape(source))).reshape(-1, channels)
        rows = found[:, 0] // channels
        if not np.array_equal(found, rows[:, None] * channels + np.arange(channels)):
            return False
        if known.order == "TB":
            rows = every_place((batch, tokens)).T.ravel()[rows]
        order = order_of_rows(np.argsort(rows).reshape(batch, tokens), batch, tokens)
        if order is None:
            return False
        if order != "BT" or shape != (batch, tokens, channels) or (node.op_type == "Identity" and known.as_is):
            self._rows[value] = _Rows(base=known.base, order=order, as_is=known.as_is)
        else:
            self._replace(value, known.base)
        return True

    def _natural(self, value: ir.Value) -> _Rows | None:
        shape = static_shape(value)
        if len(shape) != 3 or shape[0] != self._batch or shape[1] < 2 or value.is_initializer():
            return None
        return _Rows(base=value, order="BT", as_is=True)

    def _converts(self, b: Builder, node: ir.Node) -> bool:
        """Write a node on ``[B,T,C]``; return whether that could be done."""
        known = [self._rows.get(value) if value is not None else None for value in node.inputs]
        first = next((rows for rows in known if rows is not None), None)
        if first is None:
            return False
        inputs = zip(node.inputs, known, strict=True)
        shapes = [static_shape(value)[:-1] for value, rows in inputs if value is not None and rows is not None]
        orders = {rows.order for rows in known if rows is not None}
        if len(orders) > 1 or len({len(shape) for shape in shapes}) > 1:
            return False
        bases = [None if rows is None else rows.base for rows in known]
        # Fewer rows than another input has are as many tokens of each picture, or one for all.
        shape = max(shapes, key=np.prod)
        made = write_on_tokens(RowNode(b=b, node=node, bases=bases, order=first.order, shape=shape, batch=self._batch))
        if made is None:
            return False
        for value, new in zip(node.outputs, made, strict=True):
            new.type = value.type
            # One token of each picture, [B,C], or what is [B,T,C] again.
            alike = static_shape(value) == static_shape(new) and first.order == "BT"
            if alike or len(static_shape(new)) != 3:
                self._replace(value, new)
            else:
                self._rows[value] = _Rows(base=new, order=first.order, as_is=False)
        return True

    def _give_back(self, value: ir.Value) -> None:
        """Let those who can't read ``[B,T,C]`` read the value's own order, made of it."""
        rows = self._rows[value]
        users = [(node, index) for node, index in value.uses() if node not in self._converted]
        if rows.as_is or not (users or value.is_graph_output()):
            return
        b = Builder(f"{value.name}/own_order", score=False)
        new, shape = rows.base, static_shape(value)
        batch, tokens, channels = static_shape(new)
        if rows.order == "TB":
            new = b.op("Transpose", new, perm=[1, 0, 2])
            new.shape = ir.Shape([tokens, batch, channels])
        if static_shape(new) != shape:
            new = b.op("Reshape", new, list(shape))
        new.shape, new.type = value.shape, value.type
        b.insert_after(self._graph, rows.base.producer())
        self._replace(value, new)

    def _replace(self, value: ir.Value, new: ir.Value) -> None:
        if value.is_graph_output():
            if new.is_graph_output() or new.is_graph_input():
                # One value has one name.
                b = Builder(f"{value.name}/copy", score=False)
                copy = b.op("Identity", new)
                copy.shape, copy.type = new.shape, new.type
                b.insert_after(self._graph, value.producer())
                new = copy
            new.name, value.name = value.name, None
        ir.convenience.replace_all_uses_with(value, new, replace_graph_outputs=True)
