"""Keep K of the N visual tokens that the tower hands to the projector."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lmmprune.passes.anchors import VisionAnchors, find_vision_anchors
from lmmprune.passes.builder import Builder
from lmmprune.passes.methods.method import Method
from lmmprune.passes.refusals import Broken, Refused
from lmmprune.passes.scores import gather_tokens
from lmmprune.passes.shapes import infer_shapes, static_shape

KEPT = "kept_indices"


@dataclass(frozen=True, kw_only=True)
class SelectTokens(ir.passes.InPlacePass):
    """Score, pick, sort and gather between tower and projector.

    Before: ``tower -> patches [B,N,C] -> projector -> image_features [B,N,C']``
    After: ``tower -> patches -> Gather(kept) [B,K,C] -> projector -> image_features [B,K,C']``, and a second output
    ``kept_indices [B,K]`` int64, ascending, so that kept tokens stay in raster order.

    K = N leaves the graph as it is, bit for bit. A graph that already selects is refused.
    """

    method: Method
    keep: int

    def requires(self, model: ir.Model) -> None:
        """Check that the graph has the anchors, isn't pruned yet, and has at least K tokens."""
        if any(value.name == KEPT for value in model.graph.outputs):
            raise Refused(f"the graph already has an output '{KEPT}': it is pruned; start from the unpruned graph")
        tokens = find_vision_anchors(model).tokens
        if not 1 <= self.keep <= tokens:
            raise Refused(f"can't keep {self.keep} of {tokens} visual tokens: expected 1..{tokens}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        anchors = find_vision_anchors(model)
        if self.keep == anchors.tokens:
            return ir.passes.PassResult(model, modified=False)
        self._rewrite(model, anchors)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Re-derive K from shape inference."""
        features = next(v for v in model.graph.outputs if v.name == "image_features")
        found = static_shape(features)[1]
        if found != self.keep:
            raise Broken(f"'image_features' has {found} tokens after the selection, expected {self.keep}")

    def _rewrite(self, model: ir.Model, anchors: VisionAnchors) -> None:
        patches = anchors.patches
        batch, tokens, _ = static_shape(patches)
        users = list(patches.uses())
        b = Builder(f"lmmprune/{self.method.name}")
        kept = ascending(b, self.method.select(b, anchors, self.keep), self.keep)
        kept.name = KEPT
        kept.shape, kept.type = ir.Shape([batch, self.keep]), ir.TensorType(ir.DataType.INT64)
        chosen = gather_tokens(b, patches, kept, (batch, tokens, self.keep))
        for node, index in users:
            node.replace_input_with(index, chosen)
        b.insert_after(model.graph, patches.producer())
        model.graph.outputs.append(kept)
        RemoveUnusedNodesPass()(model)
        infer_shapes(model, stale=[chosen])


def ascending(b: Builder, indices: ir.Value, count: int) -> ir.Value:
    """Sort ``[B,K]`` int64 indices in ascending order: TopK is the one sort that every target has.

    The sort runs on float32, exact below 2**24, because TensorRT 10.3's TopK takes no int64.
    """
    values = b.ops("TopK", 2, b.op("Cast", indices, to=int(ir.DataType.FLOAT)), [count], axis=-1, largest=0)[0]
    return b.op("Cast", values, to=int(ir.DataType.INT64))
