"""DART: the patches that are least like a few pivots, of the picture and of the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.find.layers import last_gain
from lmmprune.passes.find.sites import llm_input
from lmmprune.passes.methods.in_decoder import input_layers, stepwise
from lmmprune.passes.methods.method import Method
from lmmprune.passes.reduce.embedded import other_rows, products, text_rows
from lmmprune.passes.reduce.filters import exclude, normalized
from lmmprune.passes.reduce.rules import Outcome, ReductionRule, padded, top
from lmmprune.passes.reduce.schedule import Counts
from lmmprune.passes.reduce.site_context import FLOAT, Rows, SiteContext
from lmmprune.passes.reduce.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Dart(Method):
    """Keep the largest visual tokens, and for each pivot (these, and the largest of the text) the tokens least like it.

    ``form=layer``: large are those with the largest L1 norm of the keys, before layer 2, and likeness is that of tokens
    behind the decoder's last norm. ``form=embedding``: both by the embeddings, in front of the decoder, the text in
    front of the picture among the pivots, as TensorRT Edge-LLM runs it.

    Reference: Wen et al., DART, 2025, arXiv 2502.11494 (released code).
    """

    form: Literal["layer", "embedding"] = "layer"
    layer: int = 2
    image_pivots: int = 4
    text_pivots: int = 4

    name = "dart"
    reference = "arXiv 2502.11494"
    exactness = (
        "form=embedding: exact to TensorRT Edge-LLM; form=layer: exact but for the order of pivots and their shares,"
        " which are Edge-LLM's: exactly K stay"
    )
    published_positions = "original"
    sites = "llm_input_2, or llm_input_0"
    schedule = "K behind its one site"
    tunable = (("form", "embedding"), ("layer", "16"))
    movable = ("llm_input",)

    def check(self, model: Facts) -> None:
        """Check the numbers of pivots."""
        super().check(model)
        if min(self.image_pivots, self.text_pivots) < 0 or self.image_pivots + self.text_pivots == 0:
            raise InputError(
                f"image_pivots={self.image_pivots}, text_pivots={self.text_pivots}: expected 0 or more, and one in all"
            )

    def counts(self, model: Facts, target: int) -> Counts:
        """One count."""
        if self.form == "embedding":
            return [(llm_input(0), target)]
        return stepwise(self.name, model, target, input_layers(model, (self.layer,), self.name))

    def plan_schedule(self, model: Facts, counts: Counts) -> tuple[Stage, ...]:
        """Follow a schedule; embeddings are there in front of the decoder only."""
        if self.form == "embedding":
            raise InputError("--schedule: dart's form=embedding cuts in front of the decoder only: give form=layer")
        return super().plan_schedule(model, counts)

    def rule(self) -> ReductionRule:
        """Pivots, then what is least like each of them."""
        return self._select

    def _select(self, at: SiteContext, keep: int) -> Outcome:
        b = at.b
        unit = self._directions(at, at.visual)
        mine, theirs = min(self.image_pivots, keep), self.text_pivots
        chosen, pivots = [], []
        if mine:
            chosen.append(top(b, padded(at, self._norms(at, "visual")), mine))
            pivots.append(at.gather(unit, chosen[0], mine))
        if theirs and keep > mine:
            pivots.append(self._pivots_of_text(at, theirs))
        if keep > mine:
            count = mine + theirs if theirs else mine
            together = b.op("Concat", *pivots, axis=1) if len(pivots) > 1 else pivots[0]
            likeness = b.op("Neg", products(at, together, unit))
            if at.decodes:
                room = np.zeros((at.batch, count, at.tokens), np.float32)
                likeness = b.op("Slice", b.op("Concat", likeness, room, axis=2), [0], [at.tokens], [2])
            free = b.constant(np.zeros((at.batch, at.tokens), np.float32))
            if chosen:
                free = exclude(at, free, chosen[0])
            for p, share in enumerate(_shares(keep - mine, count)):
                if share:
                    row = b.op("Reshape", b.op("Slice", likeness, [p], [p + 1], [1]), [at.batch, at.tokens])
                    chosen.append(top(b, b.op("Add", row, free), share))
                    free = exclude(at, free, chosen[-1])
        return Outcome(kept=b.op("Concat", *chosen, axis=1) if len(chosen) > 1 else chosen[0])

    def _norms(self, at: SiteContext, which: Rows) -> ir.Value:
        """Return the L1 norms of some tokens, ``[B,rows]``: of their keys, or of the embeddings themselves."""
        b = at.b
        if self.form == "layer":
            return b.op("ReduceSum", b.op("Abs", at.keys(which)), [1, 3], keepdims=0)
        rows = b.op("Cast", at.visual, to=FLOAT) if which == "visual" else other_rows(at)
        return b.op("ReduceSum", b.op("Abs", rows), [2], keepdims=0)

    def _directions(self, at: SiteContext, rows: ir.Value) -> ir.Value:
        """Return what cosines are taken of, rows of length one: in the layer form behind the decoder's last norm."""
        b = at.b
        gain = last_gain(at.layers) if self.form == "layer" else None
        if gain is not None:  # the norm's own division cancels in a cosine
            rows = b.op("Mul", b.op("Cast", rows, to=FLOAT), b.op("Cast", gain, to=FLOAT))
        return normalized(at, rows)

    def _pivots_of_text(self, at: SiteContext, count: int) -> ir.Value:
        """Return the directions of the largest other tokens, ``[B,count,C]``; the last again where there are fewer."""
        b = at.b
        norms = self._norms(at, "text")
        last = b.op("Sub", b.op("Shape", norms, start=1, end=2), b.constant([1]))
        more = np.full((at.batch, count), -np.inf, np.float32)
        order = b.op("Min", top(b, b.op("Concat", norms, more, axis=1), count), last)
        others = text_rows(at) if self.form == "layer" else other_rows(at)
        return at.gather_rows(self._directions(at, others), order, count, count)


def _shares(left: int, pivots: int) -> list[int]:
    """Return how many tokens each pivot takes: what is left over the pivots left, rounded up."""
    shares: list[int] = []
    for others in range(pivots, 0, -1):
        shares.append(-(-(left - sum(shares)) // others))
    return shares
