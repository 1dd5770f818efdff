"""Prune and merge visual tokens inside the encoder, at its output, and behind the projector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lmmprune.names import IMAGE_FEATURES, KEPT, NEXT_LAYER
from lmmprune.passes.find.anchors import find_vision_anchors
from lmmprune.passes.find.sites import PROJECTOR_OUTPUT
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken, Refused
from lmmprune.passes.graph.shapes import infer_shapes, static_shape
from lmmprune.passes.reduce.returned import check_returned
from lmmprune.passes.reduce.site_counts import check_counts, check_sites, removing
from lmmprune.passes.reduce.stage import Stage
from lmmprune.passes.reduce.vision_cuts import VisionCuts


@dataclass(frozen=True, kw_only=True)
class ReduceVision(GraphPass):
    """Apply the stages of a method that lie in the vision graph.

    Before: ``... -> x [B,T,C] -> ... -> image_features [B,N,C']``
    After: ``... -> x -> reduce -> x' [B,T',C] -> ... -> image_features [B,K,C']``, and outputs ``kept_indices [B,K]``
    int64, the place that each token has among those of the unpruned picture (-1: none), and ``kept_indices.<site>`` per
    stage if there are several; where a stage merges also ``received.<site> [B,K]`` int64, 1 for the tokens that others
    went into there.

    Stages that keep every token write nothing: ratio 0 is the unpruned graph. A pruned graph is refused.

    Attributes:
        method: Name, for the new nodes' names.
        stages: In any order; those in the decoder are left to ``ReduceDecoder``.
        grid: Tokens of a tower image, rows and columns.
        tiles: Tower images per picture.
        separators: Tokens that are no patches and always stay (see ``insert_separators``); the stages count them.
    """

    method: str
    stages: Sequence[Stage]
    grid: tuple[int, int]
    tiles: int = 1
    separators: int = 0

    @property
    def _mine(self) -> list[Stage]:
        return sorted((s for s in self.stages if not s.site.in_decoder), key=lambda stage: stage.site.depth)

    @property
    def _times(self) -> str:
        return f" in {self.tiles} images" if self.tiles > 1 else ""

    @property
    def _all(self) -> int:
        return self.grid[0] * self.grid[1] * self.tiles + self.separators

    def requires(self, model: ir.Model) -> None:
        """Check that the graph has the anchors, isn't pruned yet, and has the tokens of every stage."""
        if any(value.name == KEPT for value in model.graph.outputs):
            raise Refused(f"the graph already has an output '{KEPT}': it is pruned; start from the unpruned graph")
        anchors = find_vision_anchors(model)
        if anchors.tokens != self.grid[0] * self.grid[1] * self.tiles:
            raise Refused(f"the graph hands over {anchors.tokens} tokens, expected a grid of {self.grid}{self._times}")
        if (anchors.tiles, anchors.separators) != (self.tiles, self.separators):
            raise Refused(
                f"the graph has pictures of {anchors.tiles} images and {anchors.separators} tokens that are no patches,"
                f" expected {self.tiles} and {self.separators}"
            )
        before = next((stage.site for stage in self._mine if stage.site != PROJECTOR_OUTPUT), None)
        if anchors.pooled and before is not None:
            raise Refused(
                f"no site '{before}': the graph mixes patches into tokens behind the projector, and needs them all: use"
                " a method that cuts at projector_output"
            )
        check_counts(self._mine, self._all, least=self.separators + 1)
        for stage in self._mine:
            if stage.site.kind == "vision_layer" and anchors.tiles > 1:
                raise Refused(
                    f"no site '{stage.site}': the encoder sees a picture as {anchors.tiles} images, which are put"
                    " together behind it"
                )
            if stage.site.kind == "vision_layer" and anchors.members is not None:
                raise Refused(
                    f"no site '{stage.site}': the graph makes each token of {anchors.members.shape[1]} patches behind"
                    " the encoder, and needs them all"
                )
            if stage.site.kind == "vision_layer" and stage.site.layer >= anchors.depth:
                raise Refused(
                    f"no site '{stage.site}': the encoder has layers 0..{anchors.depth - 1} before its features"
                )

            inside = stage.site.kind == "vision_layer" and stage.keep < self._all
            behind = anchors.layers[stage.site.layer + 1 : anchors.depth] if inside else ()
            if any(value is not None for layer in behind for value in list(layer.node.inputs)[3:4]):
                raise Refused(
                    f"no site '{stage.site}': the layers behind it add a number to the logits of each pair of tokens"
                    " (relative positions): use a method that cuts at the vision output"
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        anchors = find_vision_anchors(model)
        VisionCuts(model, anchors, self.method, self.grid).run(self._mine)
        next_layer = [value for value in model.graph.outputs if value.name == NEXT_LAYER]
        for value in next_layer:
            model.graph.outputs.remove(value)
        changed = bool(next_layer) or any(value.name == KEPT for value in model.graph.outputs)
        if changed:
            RemoveUnusedNodesPass()(model)
            self._infer(model)
            check_returned(model)
        return ir.passes.PassResult(model, modified=changed)

    def _infer(self, model: ir.Model) -> None:
        try:
            infer_shapes(model, stale=[output for node in model.graph for output in node.outputs])
        except Refused as error:
            if all(stage.site.kind != "vision_layer" for stage in self._mine):
                raise
            raise Refused(
                f"something behind a cut inside the encoder reads all its tokens, such as rotary positions ({error}):"
                " use a method that cuts at the vision output"
            ) from error

    def ensures(self, model: ir.Model) -> None:
        """Re-derive the token count at every site from shape inference."""
        lengths = removing(self._mine, self._all)
        # The separators join the tokens behind the projector.
        check_sites(
            model,
            {site: keep - self.separators * (site != PROJECTOR_OUTPUT) for site, keep in lengths.items()},
        )
        if self._mine:
            features = next(v for v in model.graph.outputs if v.name == IMAGE_FEATURES)
            if (found := static_shape(features)[1]) != self._mine[-1].keep:
                raise Broken(
                    f"'{IMAGE_FEATURES}' has {found} tokens after the reduction, expected {self._mine[-1].keep}"
                )
