"""Find the attention that another exporter wrote, in whatever parts and order, and write it as one node."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lmmprune.passes.foreign.find_attention import Attention, decomposed
from lmmprune.passes.foreign.heads import is_joined, is_written, write_heads, write_join
from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.passes.graph.shapes import infer_shapes, static_shape

_OPSET = 23


@dataclass(frozen=True, kw_only=True)
class FuseAttention(GraphPass):
    """Write every self-attention of a static graph as ``Attention`` on ``[B,H,T,D]``.

    Before: ``Reshape(Transpose(MatMul(Softmax(MatMul(q * a, k^T * b) * c), v)), [B,T,H*D])``
    After: ``Reshape(Transpose(Attention(q, k, v, scale=a*b*c)), [0,0,H*D])`` with q, k and v as
    ``Transpose(Reshape(projection [B,T,H*D], [0,0,H,D]))``

    Before: q, k and v from one product ``[B,T,3*H*D]`` through Reshape, Transpose and Split (Gather, Slice ...)
    After: the same of ``Slice(product)``

    How the heads were split and put together is not matched node by node: each entry of q, k^T and v is followed
    through whatever only moves entries, so ``[B,H,T,D]``, ``[B*H,T,D]`` (``bmm``), ``[T,B,C]`` and any order of
    them are the same. An ``Attention`` that is there already is brought into the same form. A constant that is added
    to the logits of each pair of tokens (relative positions) becomes the node's mask.
    Products that look at other tokens than they come from (a pooling head's) are left alone.

    Attributes:
        batch: B.
    """

    batch: int

    def requires(self, model: ir.Model) -> None:
        """Check that there is an attention, and that each one can be said in one node."""
        if model.graph.opset_imports[""] < _OPSET:
            raise Refused(f"Attention needs opset {_OPSET}, the graph has {model.graph.opset_imports['']}: convert it")
        found = [Attention.of(softmax, self.batch) for softmax in decomposed(model)]
        if not found and not any(node.op_type == "Attention" for node in model.graph):
            count = sum(node.op_type == "Softmax" for node in model.graph)
            raise Refused(
                "no attention in the graph: looked for MatMul(q, k^T), Softmax over [T,T], MatMul(., v), or Attention;"
                f" found {count} Softmax nodes, none of that form: export the vision tower of CLIP, SigLIP or a ViT"
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        modified = False
        for softmax in list(decomposed(model)):
            _fuse(model, Attention.of(softmax, self.batch))
            modified = True
        if modified:
            RemoveUnusedNodesPass()(model)
            infer_shapes(model)
        for node in [node for node in model.graph if node.op_type == "Attention" and node.domain == ""]:
            found = Attention.of_node(node, self.batch)
            if found is not None and not _is_canonical(node, found):
                _fuse(model, found)
                modified = True
        if modified:
            RemoveUnusedNodesPass()(model)
            infer_shapes(model)
        return ir.passes.PassResult(model, modified=modified)

    def ensures(self, model: ir.Model) -> None:
        """Check that none is left."""
        for softmax in decomposed(model):
            raise Broken(f"'{softmax.name}' is still a decomposed attention")


def _is_canonical(node: ir.Node, found: Attention) -> bool:
    """Return whether an ``Attention`` is written as this pass would write it."""
    if found.mask is not None and len(static_shape(found.mask)) < 4:
        return False
    sides = zip(node.inputs, (found.q, found.k, found.v), strict=False)
    return is_joined(node.outputs[0], found.joined) and all(is_written(side, value) for value, side in sides)


def _fuse(model: ir.Model, found: Attention) -> None:
    b = Builder(found.name, score=False)
    q, k, v = (write_heads(b, side) for side in (found.q, found.k, found.v))
    mask = [] if found.mask is None else [_of_rank_4(b, found.mask)]
    mixed = b.op("Attention", q, k, v, *mask, scale=found.scale)
    old = found.joined.value
    joined = write_join(b, mixed, found.joined, found.size)
    b.insert_after(model.graph, old.producer())
    if old.is_graph_output():
        old.name, joined.name = None, old.name
    ir.convenience.replace_all_uses_with(old, joined, replace_graph_outputs=True)


def _of_rank_4(b: Builder, mask: ir.Value) -> ir.Value:
    missing = 4 - len(static_shape(mask))
    return b.op("Unsqueeze", mask, list(range(missing))) if missing else mask
