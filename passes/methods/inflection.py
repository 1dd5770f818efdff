"""Sparsity Meets Similarity: attention of CLS before the decoder, correlation with the text inside it."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.find.sites import VISION_OUTPUT, llm_input
from lmmprune.passes.methods.in_decoder import PAPER_DEPTH, behind_layers
from lmmprune.passes.methods.method import Method, fraction
from lmmprune.passes.reduce.filters import cls_attention, text_attention
from lmmprune.passes.reduce.rules import Reduce, ReductionRule
from lmmprune.passes.reduce.schedule import Counts, average, round_half_up, solve
from lmmprune.passes.reduce.site_context import INT64, SiteContext
from lmmprune.passes.reduce.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Inflection(Method):
    """Keep the patches that CLS attends to most; inside the decoder, the share of them that the text attends to most.

    Stage 1 ``s_j = mean_h A^lp[h,CLS,j]``; its own count for a picture is the knee of the sorted curve (``--ratio
    auto``, ``--buckets``). Stage 2, behind layer ``llm_layer`` of 32: ``r_j = mean_h mean_{t text} A[h,t,j]``; the
    share ``llm_keep`` of what arrives stays; ``prune_text`` tokens of the question go too.

    Reference: arXiv 2409.01162 (abstract; the formulas are our reading of it).
    """

    llm_layer: int = 2
    llm_keep: float = 0.5
    prune_text: int = 0

    name = "inflection"
    reference = "arXiv 2409.01162"
    exactness = "our reading of the abstract: both scores, the knee, layer and share of stage 2"
    sites = "vision_output, llm_input_3"
    schedule = "n0 at the vision output, llm_keep * n0 in the decoder"
    needs_cls = True

    def check(self, model: Facts) -> None:
        """Check shares and counts."""
        super().check(model)
        fraction("llm_keep", self.llm_keep)
        if not 1 <= self.llm_layer <= PAPER_DEPTH - 2:
            raise InputError(
                f"llm_layer={self.llm_layer}: expected 1..{PAPER_DEPTH - 2}, on the paper's decoder: layer 0 is never"
                " scored, and a cut behind the last one saves nothing"
            )
        if self.prune_text < 0:
            raise InputError(f"prune_text={self.prune_text}: expected a number of tokens, 0 or more")
        if self.llm_keep == 1 and self.prune_text:
            raise InputError("prune_text works in the second stage, which llm_keep=1 switches off")
        if model.decoder_layers < 3 and self.llm_keep < 1:
            raise InputError(
                "the second stage is scored by a decoder layer behind the first one and cuts behind it, and this"
                f" decoder has {model.decoder_layers} layers: give --set llm_keep=1"
            )

    def counts(self, model: Facts, target: int) -> Counts:
        """Return the counts of both stages."""
        if self.llm_keep == 1:
            return [(VISION_OUTPUT, target)]
        both = functools.partial(self._both, model)
        if average(both(model.tokens, self.llm_keep), model) < target:
            # Stage 2 alone removes more than was asked for: weaken it, and leave stage 1 out.
            return solve(self.name, lambda x: both(model.tokens, x), model, target, low=self.llm_keep, high=1)
        return solve(
            self.name, lambda x: both(round_half_up(x), self.llm_keep), model, target, low=1, high=model.tokens
        )

    def _both(self, model: Facts, n0: int, share: float) -> Counts:
        if self.llm_keep == 1:
            return [(VISION_OUTPUT, n0)]
        site = llm_input(behind_layers(model, (self.llm_layer,), self.name)[0])
        return [(VISION_OUTPUT, n0), (site, max(1, round_half_up(share * n0)))]

    def stages(self, model: Facts, target: int) -> tuple[Stage, ...]:
        """Return one or two stages."""
        if target == model.tokens:
            return ()
        self.check(model)
        return self._staged(self.counts(model, target))

    def stages_for(self, model: Facts, count: int) -> tuple[Stage, ...]:
        """Return the stages when ``count`` patches stay in the first."""
        self.check(model)
        return self._staged(self._both(model, count, self.llm_keep))

    def at_output_only(self) -> Method:
        """Return the first stage alone."""
        return dataclasses.replace(self, llm_keep=1.0, prune_text=0)

    def rule_at_output(self) -> ReductionRule:
        """Return the first stage's rule."""
        return Reduce(filter=cls_attention)

    def count(self, at: SiteContext) -> ir.Value:
        """Return the knee of the sorted attention."""
        return knee(at)

    def _staged(self, counts: Counts) -> tuple[Stage, ...]:
        rules = (self.rule_at_output(), Reduce(filter=_text_correlation))
        return tuple(
            Stage(site=site, keep=keep, rule=rule, prune_text=self.prune_text if site.in_decoder else 0)
            for (site, keep), rule in zip(counts, rules, strict=False)
        )


def _text_correlation(at: SiteContext) -> ir.Value:
    return at.rows(text_attention(at), "visual", 1)


def knee(at: SiteContext) -> ir.Value:
    """Return ``k(x) = knee + 1``, ``[B]`` int64: where the sorted curve of CLS's attention is farthest below its chord.

    Below, not on either side: a long tail hangs under its chord, and what rises above it is its head's own scatter.
    """
    b, n = at.b, at.tokens
    curve = b.ops("TopK", 2, cls_attention(at), [n], axis=-1)[0]
    first, last = b.op("Slice", curve, [0], [1], [1]), b.op("Slice", curve, [n - 1], [n], [1])
    along = (np.arange(n, dtype=np.float32) / max(n - 1, 1))[None]
    chord = b.op("Add", first, b.op("Mul", b.op("Sub", last, first), along))
    place = b.op("ArgMax", b.op("Sub", chord, curve), axis=1, keepdims=0)
    return b.op("Cast", b.op("Add", place, np.int64(1)), to=INT64)
