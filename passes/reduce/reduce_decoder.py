"""Prune and merge visual tokens inside the decoder, in one graph for prefill and decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.names import KEPT
from lmmprune.passes.find.anchors import find_decoder_anchors
from lmmprune.passes.find.sites import Site
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.graph.specialize import specialize
from lmmprune.passes.reduce.decoder_cuts import DecoderCuts, token_axis
from lmmprune.passes.reduce.prune_text import PROTECTED
from lmmprune.passes.reduce.returned import check_returned
from lmmprune.passes.reduce.site_counts import check_counts, check_sites
from lmmprune.passes.reduce.stage import Stage


@dataclass(frozen=True, kw_only=True)
class ReduceDecoder(GraphPass):
    """Apply the stages of a method that lie between and in the layers of the decoder.

    Before: every layer sees ``[prefix, N visual tokens, tail]``
    After: layers behind a site see ``[prefix, K, tail]``; their caches are shorter by N - K. Behind a prompt (fewer
    tokens than the picture's place reaches) every cut is the identity, without a branch. Outputs
    ``kept_indices.<site> [1,K]`` int64 index the image tokens that entered the decoder; where a stage merges,
    ``received.<site> [1,K]`` int64 is 1 for those that others went into. Both mean something in the prefill only.

    Attributes:
        method: Name, for the new nodes' names.
        stages: In any order; those in the vision graph are left to ``ReduceVision``, that in front of all layers to
            ``select_before_layers``.
        image_tokens: N, visual tokens that enter the decoder.
        prefix: Tokens of the prompt before the image.
        positions: ``contiguous`` numbers the shorter sequence anew, ``original`` keeps the numbers.
        special_ids: Tokens of the prompt that ``prune_text`` never drops.
    """

    method: str
    stages: Sequence[Stage]
    image_tokens: int
    prefix: int
    positions: str = "original"
    special_ids: Sequence[int] = ()

    @property
    def _mine(self) -> list[Stage]:
        inside = (s for s in self.stages if s.site.in_decoder and not s.site.before_layers)
        return sorted(inside, key=lambda stage: stage.site.depth)

    def requires(self, model: ir.Model) -> None:
        """Check that the graph has the anchors, isn't pruned yet, and has the layers and tokens of every stage."""
        if any(str(value.name).startswith(KEPT) for value in model.graph.outputs):
            raise Refused("the decoder is pruned already: start from the unpruned graph")
        anchors = find_decoder_anchors(model)
        check_counts(self._mine, self.image_tokens)
        last = None
        for stage in self._mine:
            if stage.site.layer >= len(anchors.layers):
                raise Refused(
                    f"no site '{stage.site}': the decoder has layers 0..{len(anchors.layers) - 1}, give one of them"
                )
            if last is not None and stage.site.scored_layer == last and stage.keep < self.image_tokens:
                raise Refused(f"{stage.site}: layer {last} is already cut, and its scores are of the longer sequence")
            last = stage.site.scored_layer
        if self._mine and self.positions != "original" and token_axis(anchors.position_ids) > 1:
            raise Refused(
                "position_ids has a row for each of frame, row and column: a token keeps the place that it has in the"
                f" picture; use positions 'original' instead of '{self.positions}'"
            )
        if self._mine and anchors.input_ids.shape is not None and anchors.input_ids.shape[0] != 1:
            raise Refused(f"'input_ids' has shape {anchors.input_ids.shape}: sites in the decoder need a batch of 1")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        run = DecoderCuts(
            model,
            find_decoder_anchors(model),
            method=self.method,
            image_tokens=self.image_tokens,
            prefix=self.prefix,
            positions=self.positions,
            special_ids=self.special_ids,
        )
        run.run(self._mine)
        return ir.passes.PassResult(model, modified=run.changed)

    def ensures(self, model: ir.Model) -> None:
        """Give the prefill numbers for its sizes, infer all shapes anew, and compare every site with the schedule."""
        if any(str(value.name).startswith(KEPT) for value in model.graph.outputs):
            prompt = self.prefix + self.image_tokens + PROTECTED + sum(stage.prune_text for stage in self._mine)
            lengths = self.lengths(prompt)
            before = dict(zip(lengths, [prompt, *lengths.values()], strict=False))
            prefill = specialize(model, seq=prompt)
            check_returned(model, prefill)
            # A stage that removes nothing writes nothing.
            check_sites(
                prefill,
                {site: length for site, length in lengths.items() if length < before[site]},
            )

    def lengths(self, prompt: int) -> dict[Site, int]:
        """Return the length of the sequence behind every site, for a prompt of so many tokens."""
        found, tokens = {}, self.image_tokens
        for stage in self._mine:
            prompt -= tokens - stage.keep + stage.prune_text
            tokens = stage.keep
            found[stage.site] = prompt
        return found

    def removed_before(self, layers: int) -> list[int]:
        """Return how many tokens of the sequence are gone when it reaches the attention of each layer."""
        lengths = self.lengths(0)
        return [
            -min((lengths[s.site] for s in self._mine if s.site.scored_layer < layer), default=0)
            for layer in range(layers)
        ]
