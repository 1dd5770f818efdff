"""Find the attention that another exporter wrote, in whatever parts and order: its q, k and v, and where it goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.passes.foreign.heads import Heads, Joined, Shape, find_heads, find_join
from lmmprune.passes.foreign.layouts import Moved, trace_moves
from lmmprune.passes.graph.moves import Array, is_move
from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.graph.shapes import is_constant, static_shape
from lmmprune.passes.lower.lower_node import attribute


def decomposed(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the Softmax nodes over products of tokens with each other."""
    for node in model.graph:
        if node.op_type != "Softmax" or node.domain not in ("", "ai.onnx"):
            continue
        shape = static_shape(node.outputs[0])
        last = node.attributes.get_int("axis", -1) in (-1, len(shape) - 1)
        if len(shape) > 1 and last and shape[-1] == shape[-2] > 1 and _product(node) is not None:
            yield node


def _product(softmax: ir.Node) -> tuple[Moved, ir.Node | None] | None:
    """Return what a softmax is taken of: the product, and what was added to it; None if there is no product."""
    assert softmax.inputs[0] is not None
    logits = trace_moves(softmax.inputs[0])
    node = logits.source.producer()
    if node is not None and node.op_type in ("Add", "Where"):
        behind = [trace_moves(value) for value in node.inputs if value is not None]
        products = [side for side in behind if _is_product(side.source)]
        return (products[0] if logits.factor == 1 else logits, node) if products else None
    return (logits, None) if _is_product(logits.source) else None


def _is_product(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "MatMul"


@dataclass(frozen=True, kw_only=True)
class Attention:
    """An attention: q, k, v, the factor on the logits, what is added to them, and where its output is joined."""

    name: str
    q: Heads
    k: Heads
    v: Heads
    scale: float
    mask: ir.Value | None
    joined: Joined

    @property
    def size(self) -> Shape:
        """B, H, T, D of the output."""
        return self.q.shape[0], self.q.shape[1], self.q.shape[2], self.v.shape[3]

    @staticmethod
    def of(softmax: ir.Node, batch: int) -> Attention:
        """Follow q, k and v of a decomposed attention back and the output forward.

        Raises:
            Refused: One of them isn't what it should be.
        """
        found = _product(softmax)
        assert found is not None
        logits, added = found
        mask = None if added is None else _pair_bias(added, softmax)
        product = logits.source.producer()
        if product is None or product.op_type != "MatMul":
            raise Refused(f"'{softmax.name}' is taken of a multiple of a sum: expected the factors on the product")
        if not np.array_equal(logits.places.ravel(), np.arange(logits.places.size)):
            raise Refused(f"the logits before '{softmax.name}' are transposed: expected the rows to be queries")
        mixed = _next_product(softmax)
        values = (product.inputs[0], product.inputs[1], mixed.inputs[1])
        q, k, v = (_by_head(value, name, softmax, batch) for value, name in zip(values, ("q", "k", "v"), strict=True))
        size = (*v.shape[:2], q.shape[2], v.shape[3])
        return Attention(
            name=str(softmax.name),
            q=q,
            k=k,
            v=v,
            scale=logits.factor * q.factor * k.factor,
            mask=mask,
            joined=_joined(mixed.outputs[0], softmax, size),
        )

    @staticmethod
    def of_node(node: ir.Node, batch: int) -> Attention | None:
        """Follow q, k and v of an ``Attention`` back and its output forward; None for one that can only stay."""
        given = [value for value in list(node.inputs)[4:] if value is not None]
        plain = not (attribute(node, "is_causal", 0) or attribute(node, "softcap", 0.0))
        if given or not plain or any(output.uses() for output in list(node.outputs)[1:]):
            return None
        sides = []
        for index, counted in enumerate(("q_num_heads", "kv_num_heads", "kv_num_heads")):
            value = node.inputs[index]
            assert value is not None
            side = trace_moves(value, factors=index < 2)
            places = side.places
            if places.ndim == 3:
                split = (*places.shape[:2], node.attributes.get_int(counted, 1), -1)
                places = places.reshape(split).transpose(0, 2, 1, 3)
            heads = None if places.shape[0] != batch else find_heads(_with_places(side, places))
            if heads is None:
                return None
            sides.append(heads)
        q, k, v = sides
        size = (q.shape[0], q.shape[1], q.shape[2], v.shape[3])
        joined, _ = find_join(node.outputs[0], size)
        if joined is None:
            return None
        return Attention(
            name=str(node.name),
            q=q,
            k=k,
            v=v,
            scale=node.attributes.get_float("scale", q.shape[3] ** -0.5) * q.factor * k.factor,
            mask=node.inputs[3] if len(node.inputs) > 3 else None,
            joined=joined,
        )


def _with_places(side: Moved, places: Array) -> Moved:
    return Moved(source=side.source, factor=side.factor, places=places)


def _pair_bias(added: ir.Node, softmax: ir.Node) -> ir.Value:
    """Return the constant ``[...,T,T]`` that is added to the logits.

    Raises:
        Refused: It isn't one: it hides tokens.
    """
    tokens = static_shape(softmax.outputs[0])[-2:]
    for value in added.inputs:
        if value is not None and is_constant(value) and added.op_type == "Add":
            shape = static_shape(value)
            if shape[-2:] == tokens and len(shape) <= len(static_shape(softmax.outputs[0])) == 4:
                return value
    raise Refused(
        f"'{added.name}' ({added.op_type}) lies between the product and '{softmax.name}': looked for a tower"
        " whose tokens all see each other; export it without a mask"
    )


def _next_product(softmax: ir.Node) -> ir.Node:
    """Return the product of the probabilities with the values."""
    value = softmax.outputs[0]
    while len(uses := list(value.uses())) == 1 and not value.is_graph_output():
        node, index = uses[0]
        if node.op_type == "MatMul" and index == 0:
            return node
        if not is_move(node) or node.op_type in ("Transpose", "Slice", "Gather", "Split"):
            break
        value = node.outputs[0]
    raise Refused(
        f"'{value.name}' behind '{softmax.name}' goes to {[n.op_type for n, _ in value.uses()]}: expected the product"
        " with the values and nothing else, no output of the graph either"
    )


def _by_head(value: ir.Value | None, name: str, softmax: ir.Node, batch: int) -> Heads:
    """Return where q, k or v come from."""
    assert value is not None
    side = trace_moves(value, factors=name != "v")
    places = np.swapaxes(side.places, -1, -2) if name == "k" else side.places
    if places.ndim == 3 and places.shape[0] % batch == 0:
        places = places.reshape(batch, -1, *places.shape[1:])
    fits = places.ndim == 4 and places.shape[0] == batch
    heads = find_heads(_with_places(side, places)) if fits else None
    if heads is None:
        raise Refused(
            f"'{side.source.name}' {static_shape(side.source)} is the {name} of '{softmax.name}': its entries don't"
            f" hold the heads of {batch} pictures, with every token in its place"
        )
    return heads


def _joined(mixed: ir.Value, softmax: ir.Node, size: Shape) -> Joined:
    """Follow the mixed values to where the heads stand side by side."""
    joined, last = find_join(mixed, size)
    if joined is None:
        batch, heads, tokens, width = size
        raise Refused(
            f"'{last.name}' {static_shape(last)} behind '{softmax.name}' goes to {[n.op_type for n, _ in last.uses()]}"
            f" before the heads stand side by side: expected {(batch, tokens, heads * width)}"
        )
    return joined
