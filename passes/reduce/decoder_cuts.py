"""Write the cuts of a decoder, site after site: each is the identity in a decode step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lmmprune.names import METHOD, SITE, kept_at, received_at
from lmmprune.passes.find.anchors import DecoderAnchors
from lmmprune.passes.find.sites import Site
from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.graph.shapes import infer_shapes, reached
from lmmprune.passes.reduce.prune_text import surviving_text
from lmmprune.passes.reduce.rewire import rewire
from lmmprune.passes.reduce.rules import Merge, Outcome, ascending, merge_targets
from lmmprune.passes.reduce.site_context import END, FLOAT, SiteContext
from lmmprune.passes.reduce.site_counts import tokens_name
from lmmprune.passes.reduce.stage import Stage


class DecoderCuts:
    """One run of ``ReduceDecoder``: what stands for ids, positions and lengths behind the cuts made so far."""

    def __init__(
        self,
        model: ir.Model,
        anchors: DecoderAnchors,
        *,
        method: str,
        image_tokens: int,
        prefix: int,
        positions: str,
        special_ids: Sequence[int],
    ) -> None:
        """Begin before the first cut; all but the anchors as in ``ReduceDecoder``."""
        self._model = model
        self._anchors = anchors
        self._method = method
        self._image_tokens = image_tokens
        self._prefix = prefix
        self._policy = positions
        self._special_ids = special_ids
        self._tokens = image_tokens
        self._ids, self._positions = anchors.input_ids, anchors.position_ids
        # The layer whose cache tells how long the caches of this stretch of layers are.
        self._stretch = 0
        self._origin: ir.Value | None = None
        self._alive: ir.Value | None = None
        self._length: ir.Value | None = None
        self._streams: dict[Site, ir.Value] = {}
        self._deeper = dict(anchors.deeper)
        shape = anchors.embeds.shape
        assert shape is not None
        self._width = shape[2]
        self.changed = False

    def run(self, stages: Sequence[Stage]) -> None:
        """Write all stages that remove something; ``changed`` says whether there was one."""
        for stage in stages:
            if stage.keep < self._tokens or stage.prune_text:
                if self._alive is None:
                    self._begin()
                self._reduce(stage)
        if not self.changed:
            return
        RemoveUnusedNodesPass()(self._model)
        outputs = {value: value.shape for value in self._model.graph.outputs}
        stale = set(reached(self._streams.values()))
        for value in stale:
            value.shape = None
        # Inference can't see how long the shorter sequence is, but it passes a name on.
        for site, value in self._streams.items():
            value.shape = ir.Shape([1, f"seq_{site}", self._width])
        infer_shapes(self._model)
        for value, shape in outputs.items():
            value.shape = self._present_shape(str(value.name), shape) if value in stale else shape

    def _present_shape(self, name: str, shape: ir.Shape | None) -> ir.Shape | None:
        """Return the shape of an output behind a cut: caches are named after their stretch of layers."""
        if shape is None or not name.startswith("present."):
            return shape
        layer = int(name.split(".")[1])
        site = max((site for site in self._streams if site.scored_layer < layer), key=lambda site: site.depth)
        past = self._anchors.past[layer][0].shape
        assert past is not None
        return ir.Shape([shape[0], shape[1], f"{past[2]} + seq_{site}", shape[3]])

    def _begin(self) -> None:
        """Write the two numbers that all cuts share: the sequence's length, and whether this is the prefill."""
        b = Builder(f"lmmprune/{self._method}", about={METHOD: self._method})
        self._length = b.op("Shape", self._ids, start=1, end=2)
        reach = self._prefix + self._image_tokens
        # At least one token follows the image, so a decode step never looks like a prefill, nor do some tokens more.
        self._alive = b.op("Greater", self._length, b.constant([reach]))
        b.prepend_to(self._model.graph)

    def _reduce(self, stage: Stage) -> None:
        graph = self._model.graph
        assert self._alive is not None
        assert self._length is not None
        old = self._boundary(stage.site)
        users = list(old.uses())
        about = {METHOD: self._method, SITE: str(stage.site)}
        b = Builder(f"lmmprune/{self._method}/{stage.site}", about=about)
        at = self._at(b, stage, old)
        tokens, keep, prefix = self._tokens, stage.keep, self._prefix
        removed = tokens - keep + stage.prune_text
        outcome: Outcome | None = None
        if keep < tokens:
            outcome = stage.rule(at, keep)
            if outcome.tokens is not None or outcome.sizes is not None:
                raise Refused(f"{stage.site}: a rule in the decoder may drop and merge, not make tokens of its own")
            kept = outcome.kept if outcome.ordered else ascending(b, outcome.kept, keep)
        else:
            kept = b.constant(np.arange(keep, dtype=np.int64)[None])
        # Behind a prompt the first rows stay where they are: the selection is the identity there.
        places = b.op("Where", self._alive, b.op("Reshape", kept, [keep]), np.arange(keep, dtype=np.int64))
        tail = surviving_text(
            at,
            self._length,
            self._ids,
            begin=prefix + tokens,
            kept=prefix + keep,
            drop=stage.prune_text,
            special=self._special_ids,
        )
        whole = b.op(
            "Concat", np.arange(prefix, dtype=np.int64), b.op("Add", places, b.constant([prefix])), tail, axis=0
        )
        shorter = b.op("Where", self._alive, b.op("Sub", self._length, b.constant([removed])), self._length)
        rows = b.op("Slice", whole, [0], shorter, [0])
        new = b.stream("Gather", old, rows, axis=1)
        if outcome is not None and outcome.merge is not None:
            new = self._merge(b, at, new, outcome.merge, keep)
        rebind = self._rebind(b, stage, rows, shorter, removed, old, new)
        self._expose(b, at, stage, kept, new, None if outcome is None else merge_targets(b, outcome))
        after = b.insert_after(graph, old.producer())
        rewire(graph, old, new, users, rebind, after=after, prefix=str(stage.site))
        if self._deeper:
            # What DeepStack adds may be written behind a cut that it is now cut with.
            graph.sort()
        self._tokens, self._length = keep, shorter
        self.changed = True

    def _boundary(self, site: Site) -> ir.Value:
        """Return the stream that is cut at a site."""
        layer = self._anchors.layers[site.scored_layer]
        return layer.mid if site.kind == "llm_layer" else layer.out

    def _at(self, b: Builder, stage: Stage, old: ir.Value) -> SiteContext:
        anchors = self._anchors
        if self._origin is None:
            self._origin = b.constant(np.arange(self._tokens, dtype=np.int64)[None])
        at = SiteContext(
            b=b,
            name=str(stage.site),
            layer=anchors.layers[stage.site.scored_layer],
            layers=anchors.layers,
            depth=len(anchors.layers),
            stream=old,
            visual=old,
            batch=1,
            tokens=self._tokens,
            first=self._prefix,
            grid=(1, self._tokens),
            origin=self._origin,
            ahead=anchors.layers[stage.site.layer] if stage.site.kind == "llm_input" else None,
            carried=self._carried(stage, old),
            embeds=(anchors.embeds, self._prefix, self._prefix + self._image_tokens),
            alive=self._alive,
        )
        return dataclasses.replace(at, visual=at.rows(old, "visual", 1, stream=True))

    def _carried(self, stage: Stage, old: ir.Value) -> dict[ir.Value, int]:
        """Return what brings tokens into the layer behind a site, as it is in front of the cut, with its token axis."""
        deeper = self._deeper.get(stage.site.scored_layer)
        found = {old: 1, self._ids: 1, self._positions: token_axis(self._anchors.position_ids)}
        return found if deeper is None else {**found, deeper: 1}

    def _merge(self, b: Builder, at: SiteContext, new: ir.Value, merge: Merge, keep: int) -> ir.Value:
        """Give what was dropped to the kept rows; in a decode step all weights are zero, which changes nothing."""
        prefix = self._prefix
        weights = b.op("Where", self._alive, merge.weights, np.float32(0))
        dropped = at.gather(at.visual, merge.dropped, at.tokens - keep)
        last = b.op("Sub", b.op("Shape", new, start=1, end=2), b.constant([1]))
        begin = b.op("Min", b.constant([prefix]), last)
        rows = b.stream("Slice", new, begin, [prefix + keep], [1])
        weights = b.op("Slice", weights, [0], b.op("Shape", rows, start=1, end=2), [1])
        gift = b.op("MatMul", weights, b.op("Cast", dropped, to=FLOAT))
        total = b.op("Add", b.op("Cast", rows, to=FLOAT), gift)
        if merge.mean:
            share = b.op("ReduceSum", weights, [2], keepdims=1)
            total = b.op("Div", total, b.op("Add", share, np.float32(1)))
        before = b.stream("Slice", new, [0], begin, [1])
        behind = b.stream("Slice", new, [prefix + keep], [END], [1])
        return b.stream("Concat", before, total, behind, axis=1)

    def _rebind(
        self,
        b: Builder,
        stage: Stage,
        rows: ir.Value,
        shorter: ir.Value,
        removed: int,
        old: ir.Value,
        new: ir.Value,
    ) -> Mapping[ir.Value, ir.Value]:
        """Return what stands for ids, positions and the cache's length behind the cut."""
        ids = b.op("Gather", self._ids, rows, axis=1)
        if self._policy == "original":
            positions = b.op("Gather", self._positions, rows, axis=token_axis(self._anchors.position_ids))
        else:
            # The prompt is numbered anew; a decode step's number counts the tokens that were dropped in the prefill.
            first = b.op("Slice", self._positions, [0], shorter, [1])
            positions = b.op("Sub", first, b.op("Where", self._alive, b.constant([0]), b.constant([removed])))
        rebind = {self._ids: ids, self._positions: positions, old: new}
        for index, value in self._deeper.items():
            # Behind the cut the j-th placeholder isn't the j-th feature any more: the rows themselves are cut.
            if index >= stage.site.scored_layer:
                self._deeper[index] = rebind[value] = b.stream("Gather", value, rows, axis=1)
        behind = stage.site.scored_layer + 1
        if behind < len(self._anchors.past):
            # Layers of the stretch that lie before the cut tell the wrong length behind it.
            for index in range(self._stretch, behind):
                for mine, theirs in zip(self._anchors.past[index], self._anchors.past[behind], strict=True):
                    rebind[mine] = theirs
            self._stretch = behind
        self._ids, self._positions = ids, positions
        return rebind

    def _expose(
        self, b: Builder, at: SiteContext, stage: Stage, kept: ir.Value, new: ir.Value, received: ir.Value | None
    ) -> None:
        """Name the tokens that leave, for ``ensures``; make the kept places, and who took in others, outputs."""
        new.name = tokens_name(stage.site)
        origin = b.op(
            "Reshape", b.op("Gather", at.origin, b.op("Reshape", kept, [stage.keep]), axis=1), [1, stage.keep]
        )
        self._origin = origin
        for name, value in ((kept_at(stage.site), origin), (received_at(stage.site), received)):
            if value is None:
                continue
            # Inference can't tell how many were merged into; a Reshape says it.
            named = b.op("Reshape", value, [1, stage.keep])
            named.name, named.type = name, ir.TensorType(ir.DataType.INT64)
            named.shape = ir.Shape([1, stage.keep])
            self._model.graph.outputs.append(named)
        self._streams[stage.site] = new
        behind = stage.site.scored_layer + 1
        for pair in self._anchors.past[behind:]:
            for value in pair:
                assert value.shape is not None
                value.shape = ir.Shape([value.shape[0], value.shape[1], f"past_{behind}", value.shape[3]])


def token_axis(positions: ir.Value) -> int:
    """Return the axis of ``[B,T]`` or ``[3,B,T]`` that counts the tokens."""
    assert positions.shape is not None
    return len(positions.shape) - 1
