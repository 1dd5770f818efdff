"""Find the attention that another exporter wrote as MatMul, Softmax, MatMul, and write it as one node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lmmprune.passes.builder import Builder
from lmmprune.passes.layouts import Array, Moved, is_move, move, trace_moves
from lmmprune.passes.refusals import Broken, Refused
from lmmprune.passes.shapes import infer_shapes, static_shape

_OPSET = 23


@dataclass(frozen=True, kw_only=True)
class FuseAttention(ir.passes.InPlacePass):
    """Write every self-attention of a static graph as ``Attention`` on ``[B,H,T,D]``.

    Before: ``Reshape(Transpose(MatMul(Softmax(MatMul(q * a, k^T * b) * c), v)), [B,T,H*D])``
    After: ``Reshape(Transpose(Attention(q, k, v, scale=a*b*c)), [0,0,H*D])`` with q, k and v as
    ``Transpose(Reshape(projection [B,T,H*D], [0,0,H,D]))``

    How the heads were split and put together is not matched node by node: each entry of q, k^T and v is followed
    through reshapes and transpositions, so ``[B,H,T,D]``, ``[B*H,T,D]`` (``bmm``) and any order of them are the same.
    Products that look at other tokens than they come from (a pooling head's) are left alone.

    Attributes:
        batch: B.
    """

    batch: int

    def requires(self, model: ir.Model) -> None:
        """Check that there is an attention, and that each one can be said in one node."""
        if model.graph.opset_imports[""] < _OPSET:
            raise Refused(f"Attention needs opset {_OPSET}, the graph has {model.graph.opset_imports['']}: convert it")
        found = [_Found.of(softmax, self.batch) for softmax in _candidates(model)]
        if not found and not any(node.op_type == "Attention" for node in model.graph):
            count = sum(node.op_type == "Softmax" for node in model.graph)
            raise Refused(
                "no attention in the graph: looked for MatMul(q, k^T), Softmax over [T,T], MatMul(., v), or Attention;"
                f" found {count} Softmax nodes, none of that form: export the vision tower of CLIP or SigLIP"
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        candidates = list(_candidates(model))
        for softmax in candidates:
            _fuse(model, _Found.of(softmax, self.batch))
        if candidates:
            RemoveUnusedNodesPass()(model)
            infer_shapes(model)
        return ir.passes.PassResult(model, modified=bool(candidates))

    def ensures(self, model: ir.Model) -> None:
        """Check that none is left."""
        for softmax in _candidates(model):
            raise Broken(f"'{softmax.name}' is still a decomposed attention")


def _candidates(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the Softmax nodes over products of tokens with each other."""
    for node in model.graph:
        if node.op_type != "Softmax" or node.domain not in ("", "ai.onnx"):
            continue
        rows, columns = static_shape(node.outputs[0])[-2:]
        last = node.attributes.get_int("axis", -1) in (-1, len(static_shape(node.outputs[0])) - 1)
        if last and rows == columns > 1 and _product(node) is not None:
            yield node


def _product(softmax: ir.Node) -> tuple[Moved, ir.Node | None] | None:
    """Return what a softmax is taken of: the product, and what was added to it; None if there is no product."""
    assert softmax.inputs[0] is not None
    logits = trace_moves(softmax.inputs[0])
    node = logits.source.producer()
    if node is not None and node.op_type in ("Add", "Where"):
        behind = [trace_moves(value).source.producer() for value in node.inputs if value is not None]
        return (logits, node) if any(n is not None and n.op_type == "MatMul" for n in behind) else None
    return (logits, None) if node is not None and node.op_type == "MatMul" else None


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A decomposed attention: q, k, v as ``[B,H,T,D]``, the factor on the logits, and where its output is joined."""

    name: str
    q: Moved
    k: Moved
    v: Moved
    scale: float
    joined: ir.Value

    @staticmethod
    def of(softmax: ir.Node, batch: int) -> _Found:
        """Follow q, k and v back and the output forward.

        Raises:
            Refused: One of them isn't what it should be.
        """
        found = _product(softmax)
        assert found is not None
        logits, added = found
        if added is not None:
            raise Refused(
                f"'{added.name}' ({added.op_type}) lies between the product and '{softmax.name}': looked for a tower"
                " whose tokens all see each other; export it without a mask"
            )
        product = logits.source.producer()
        assert product is not None
        if not np.array_equal(logits.places.ravel(), np.arange(logits.places.size)):
            raise Refused(f"the logits before '{softmax.name}' are transposed: expected the rows to be queries")
        mixed = _next_product(softmax)
        q, k, v = product.inputs[0], product.inputs[1], mixed.inputs[1]
        assert q is not None
        assert k is not None
        assert v is not None
        sides = {"q": trace_moves(q), "k": trace_moves(k), "v": trace_moves(v, factors=False)}
        moved = {name: _by_head(side, name, softmax, batch) for name, side in sides.items()}
        return _Found(
            name=str(softmax.name),
            scale=logits.factor * sides["q"].factor * sides["k"].factor,
            joined=_joined(mixed, softmax, moved["v"].places.shape),
            **moved,
        )


def _next_product(softmax: ir.Node) -> ir.Node:
    """Return the product of the probabilities with the values."""
    value = softmax.outputs[0]
    while len(uses := list(value.uses())) == 1 and not value.is_graph_output():
        node, index = uses[0]
        if node.op_type == "MatMul" and index == 0:
            return node
        if not is_move(node) or node.op_type == "Transpose":
            break
        value = node.outputs[0]
    raise Refused(
        f"'{value.name}' behind '{softmax.name}' goes to {[n.op_type for n, _ in value.uses()]}: expected the product"
        " with the values and nothing else, no output of the graph either"
    )


def _by_head(side: Moved, name: str, softmax: ir.Node, batch: int) -> Moved:
    """Return one side's places as ``[B,H,T,D]``."""
    places = np.swapaxes(side.places, -1, -2) if name == "k" else side.places
    if places.ndim == 3 and places.shape[0] % batch == 0:
        places = places.reshape(batch, -1, *places.shape[1:])
    moved = Moved(source=side.source, factor=side.factor, places=places)
    if places.ndim != 4 or places.shape[0] != batch or _layout(moved) is None:
        raise Refused(
            f"'{side.source.name}' {static_shape(side.source)} is the {name} of '{softmax.name}': its entries don't"
            f" come in the order [{batch},T,H,D] or [{batch},H,T,D]"
        )
    return moved


def _layout(moved: Moved) -> str | None:
    """Return how the source is laid out: ``T,H*D``, ``T,H,D`` or ``H,T,D``; None for anything else."""
    batch, heads, tokens, width = moved.places.shape
    shape = static_shape(moved.source)
    forms = {"T,H*D": (batch, tokens, heads * width), "T,H,D": (batch, tokens, heads, width)}
    order = np.arange(moved.places.size)
    for form, expected in forms.items():
        split = order.reshape(batch, tokens, heads, width).transpose(0, 2, 1, 3)
        if shape == expected and np.array_equal(moved.places, split):
            return form
    if shape == moved.places.shape and np.array_equal(moved.places.ravel(), order):
        return "H,T,D"
    return None


def _joined(mixed: ir.Node, softmax: ir.Node, shape: tuple[int, ...]) -> ir.Value:
    """Follow the mixed values ``[B,H,T,D]`` to where the heads stand side by side, ``[B,T,H*D]``."""
    batch, heads, tokens, width = shape
    every: Array = np.arange(batch * heads * tokens * width)
    wanted = every.reshape(shape).transpose(0, 2, 1, 3).reshape(batch, tokens, heads * width)
    value = mixed.outputs[0]
    places = every.reshape(static_shape(value))
    while not (places.shape == wanted.shape and np.array_equal(places, wanted)):
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output() or not is_move(uses[0][0]):
            raise Refused(
                f"'{value.name}' {static_shape(value)} behind '{softmax.name}' goes to {[n.op_type for n, _ in uses]}"
                f" before the heads stand side by side: expected {wanted.shape}"
            )
        value = uses[0][0].outputs[0]
        places = move(uses[0][0], places)
    return value


def _fuse(model: ir.Model, found: _Found) -> None:
    b = Builder(found.name, score=False)
    batch, heads, tokens, width = found.v.places.shape
    q, k, v = (_write_heads(b, side) for side in (found.q, found.k, found.v))
    mixed = b.op("Attention", q, k, v, scale=found.scale)
    turned = b.op("Transpose", mixed, perm=[0, 2, 1, 3])
    joined = b.op("Reshape", turned, [0, 0, heads * width])
    # The next attention may begin where this one ends.
    mixed.shape, turned.shape = ir.Shape([batch, heads, tokens, width]), ir.Shape([batch, tokens, heads, width])
    joined.shape, joined.type = found.joined.shape, found.joined.type
    b.insert_after(model.graph, found.joined.producer())
    if found.joined.is_graph_output():
        found.joined.name, joined.name = None, found.joined.name
    ir.convenience.replace_all_uses_with(found.joined, joined, replace_graph_outputs=True)


def _write_heads(b: Builder, side: Moved) -> ir.Value:
    """Write ``[B,H,T,D]`` from the source."""
    _, heads, _, width = side.places.shape
    layout, value = _layout(side), side.source
    if layout == "H,T,D":
        return value
    if layout == "T,H*D":
        value = b.op("Reshape", value, [0, 0, heads, width])
    return b.op("Transpose", value, perm=[0, 2, 1, 3])
