"""Write the cuts of a vision graph, site after site, and tell where the tokens of the last one come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from lmmprune.names import KEPT, METHOD, SITE, kept_at, received_at
from lmmprune.passes.find.anchors import VisionAnchors
from lmmprune.passes.find.sites import Site
from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.graph.shapes import static_shape
from lmmprune.passes.reduce.insert_separators import insert_separators, replace_features, separated_features
from lmmprune.passes.reduce.rewire import relax_shapes, rewire
from lmmprune.passes.reduce.rules import Outcome, ascending, merge_targets, merged
from lmmprune.passes.reduce.site_context import SiteContext, gather_tokens
from lmmprune.passes.reduce.site_counts import removing, tokens_name
from lmmprune.passes.reduce.stage import Stage


def vision_output(b: Builder, anchors: VisionAnchors, grid: tuple[int, int]) -> SiteContext:
    """Return the site between encoder and projector of an unpruned graph, as rules see it."""
    batch, tokens, _ = static_shape(anchors.patches)
    places = np.broadcast_to(np.arange(tokens, dtype=np.int64), (batch, tokens)).copy()
    return SiteContext(
        b=b,
        name="vision_output",
        layer=anchors.layers[anchors.depth - 1],
        layers=anchors.layers,
        depth=anchors.depth,
        stream=anchors.hidden,
        visual=anchors.patches,
        batch=batch,
        tokens=tokens,
        first=int(anchors.has_cls),
        has_cls=anchors.has_cls,
        grid=grid,
        members=anchors.members,
        origin=b.constant(places),
        tiles=anchors.tiles,
    )


class VisionCuts:
    """One run of ``ReduceVision``: what is known of the tokens as it goes from site to site."""

    def __init__(self, model: ir.Model, anchors: VisionAnchors, method: str, grid: tuple[int, int]) -> None:
        self._model = model
        self._anchors = anchors
        self._unpruned = anchors
        self._method = method
        self._grid = grid
        self._batch = static_shape(anchors.patches)[0]
        self._tokens = anchors.tokens
        self._separators = anchors.separators
        self._origin: ir.Value | None = None
        self._sizes: ir.Value | None = None
        self._outputs: dict[Site, ir.Value] = {}
        self._received: dict[Site, ir.Value] = {}

    def run(self, stages: Sequence[Stage]) -> None:
        """Write all stages that remove something."""
        counts = removing(stages, self._tokens + self._separators)
        work = [stage for stage in stages if stage.site in counts]
        if not work:
            return
        relax_shapes(self._model)
        for stage in work:
            self._reduce(stage)
        self._finish(len(work) > 1)

    def _reduce(self, stage: Stage) -> None:
        anchors, graph = self._anchors, self._model.graph
        index = stage.site.layer if stage.site.kind == "vision_layer" else anchors.depth - 1
        old = {
            "vision_layer": anchors.layers[index].mid,
            "vision_output": anchors.patches,
            "projector_output": anchors.features,
        }[stage.site.kind]
        # The CLS row is still in the stream inside the encoder; at its output rules may read it, but it isn't cut.
        inside = stage.site.kind == "vision_layer"
        keep = stage.keep - self._separators
        lead = int(anchors.has_cls and inside)
        users = list(old.uses())
        readers = {value: list(value.uses()) for value in anchors.deeper if old is anchors.patches}
        b = Builder(f"lmmprune/{self._method}/{stage.site}", about={METHOD: self._method, SITE: str(stage.site)})
        visual = b.stream("Slice", old, [lead], [lead + self._tokens], [1]) if lead else old
        stream = anchors.hidden if stage.site.kind == "vision_output" else old
        if self._origin is None:
            places = np.arange(self._tokens, dtype=np.int64)
            self._origin = b.constant(np.broadcast_to(places, (self._batch, self._tokens)).copy())
        at = SiteContext(
            b=b,
            name=str(stage.site),
            layer=anchors.layers[index],
            layers=anchors.layers,
            depth=anchors.depth,
            stream=stream,
            # Rules compare a token's own features, not what DeepStack puts beside them.
            visual=anchors.own if old is anchors.features else visual,
            batch=self._batch,
            tokens=self._tokens,
            first=int(anchors.has_cls),
            has_cls=anchors.has_cls,
            grid=self._grid,
            members=anchors.members,
            origin=self._origin,
            sizes=self._sizes,
            tiles=anchors.tiles,
        )
        outcome = stage.rule(at, keep)
        if anchors.deeper and (outcome.tokens is not None or outcome.merge is not None):
            raise Refused(
                f"{stage.site}: method '{self._method}' makes new tokens, and this model's decoder also gets the old"
                f" ones from {len(anchors.deeper)} other depths (DeepStack): use a method that only drops"
            )
        tokens, kept = self._tokens_of(at, visual, outcome, keep)
        tokens.name = tokens_name(stage.site)
        self._origin = self._follow(at, outcome, kept, keep)
        self._sizes = outcome.sizes
        if (received := merge_targets(b, outcome)) is not None:
            self._received[stage.site] = received
        new = b.stream("Concat", b.stream("Slice", old, [0], [lead], [1]), tokens, axis=1) if lead else tokens
        rebind = {}
        if outcome.sizes is not None and inside:
            bias = self._bias_later_layers(b, index, outcome.sizes, keep)
            rebind[bias] = bias
        sizes = (self._batch, self._tokens, keep)
        beside = [(gather_tokens(b, value, kept, sizes, stream=True), uses) for value, uses in readers.items()]
        after = b.insert_after(graph, old.producer())
        if old is anchors.separated:
            new = replace_features(self._model, old, new)
        rewire(graph, old, new, users, rebind, beside=beside, after=after, prefix=str(stage.site))
        if beside:
            # The other depths' projectors may stand before the selection.
            graph.sort()
        if old is anchors.patches:
            self._anchors = dataclasses.replace(anchors, patches=new)
        self._tokens = keep
        self._outputs[stage.site] = self._origin

    def _tokens_of(self, at: SiteContext, visual: ir.Value, outcome: Outcome, keep: int) -> tuple[ir.Value, ir.Value]:
        """Return those of the visual tokens ``[B,n,C]`` that leave, ``[B,K,C]``, and their places ``[B,K]``."""
        b = at.b
        if outcome.tokens is not None:
            return outcome.tokens, outcome.kept
        kept = outcome.kept if outcome.ordered else ascending(b, outcome.kept, keep)
        rows = gather_tokens(b, visual, kept, (at.batch, at.tokens, keep), stream=True)
        if outcome.merge is None:
            return rows, kept
        dropped = gather_tokens(b, visual, outcome.merge.dropped, (at.batch, at.tokens, at.tokens - keep), stream=True)
        return merged(b, rows, dropped, outcome.merge), kept

    def _follow(self, at: SiteContext, outcome: Outcome, kept: ir.Value, keep: int) -> ir.Value:
        """Return the places of the grid ``[B,K]`` that the tokens have now; -1 stays -1."""
        b = at.b
        if outcome.tokens is None and not self._outputs:
            return kept
        inside = b.op("Max", kept, b.constant([0]))
        patches = at.gather_entries(at.origin, inside, keep)
        return b.op("Where", b.op("Less", kept, b.constant([0])), b.constant([-1]), patches)

    def _bias_later_layers(self, b: Builder, index: int, sizes: ir.Value, keep: int) -> ir.Value:
        """Add ``log(size)`` to the logits of all layers behind: a token that stands for several is attended as such."""
        logs = b.op("Log", sizes)
        if self._anchors.has_cls:
            logs = b.op("Concat", np.zeros((self._batch, 1), np.float32), logs, axis=1)
        tokens = int(self._anchors.has_cls) + keep
        # ONNX would broadcast one row; ONNX Runtime's kernel takes a row per query only.
        bias = b.op("Expand", b.op("Unsqueeze", logs, [1, 2]), [self._batch, 1, tokens, tokens])
        for layer in self._anchors.layers[index + 1 :]:
            inputs = layer.node.inputs
            if len(inputs) < 4:
                layer.node.resize_inputs(4)
            layer.node.replace_input_with(3, bias)
        return bias

    def _finish(self, several: bool) -> None:
        """Make the kept places, and which of them took in others, outputs of the graph."""
        b = Builder(f"lmmprune/{self._method}", about={METHOD: self._method})
        if self._separators:
            self._insert_separators(b)
        outputs = {kept_at(site): value for site, value in self._outputs.items()} if several else {}
        outputs |= {received_at(site): value for site, value in self._received.items()}
        assert self._origin is not None
        for name, value in {KEPT: self._origin, **outputs}.items():
            named = b.op("Identity", value)
            named.name, named.type = name, ir.TensorType(ir.DataType.INT64)
            self._model.graph.outputs.append(named)
        b.append_to(self._model.graph)

    def _insert_separators(self, b: Builder) -> None:
        """Set the separators between the tokens that are left, and tell all places as those of the output."""
        anchors, keep = self._unpruned, self._tokens
        assert self._origin is not None
        separated = insert_separators(b, anchors, self._origin, keep)
        features = separated_features(b, anchors, separated, keep)
        replace_features(self._model, anchors.separated, features)
        self._origin = separated.places
        nobody = b.constant(np.zeros((self._batch, self._separators), np.int64))
        for site, flags in self._received.items():
            every = b.op("Unsqueeze", b.op("Concat", flags, nobody, axis=1), [2])
            count = keep + self._separators
            rows = gather_tokens(b, every, separated.rows, (self._batch, count, count))
            self._received[site] = b.op("Reshape", rows, [self._batch, count])
