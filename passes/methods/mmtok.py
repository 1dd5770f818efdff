"""MMTok: the patches that cover the question and the picture best."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.find.sites import llm_input
from lmmprune.passes.methods.method import Method
from lmmprune.passes.reduce.embedded import places, products, text_rows
from lmmprune.passes.reduce.filters import normalized
from lmmprune.passes.reduce.rules import Outcome, ReductionRule
from lmmprune.passes.reduce.site_context import FLOAT, SiteContext


@dataclass(frozen=True, kw_only=True)
class MmTok(Method):
    """In front of the decoder, add the token that covers most of the text's and the picture's tokens, K times.

    A token covers another by ``softmax_j(cos / temperature)``; what counts is the mean over the text of the best cover
    among those chosen, plus ``alpha`` times the same over the picture. Unrolled into K steps.

    Reference: Dong et al., MMTok, 2025, arXiv 2508.18264.
    """

    alpha: float = 0.5
    text_temperature: float = 0.02
    vision_temperature: float = 0.2

    name = "mmtok"
    reference = "arXiv 2508.18264"
    exactness = (
        "exact but for what is compared: projected features with each other, and the whole text behind the picture in"
        " place of the question's key words [ours]"
    )
    published_positions = "contiguous"
    site = llm_input(0)
    sites = "llm_input_0"

    def check(self, model: Facts) -> None:
        """Check the share and the temperatures."""
        super().check(model)
        if not 0 <= self.alpha < math.inf:
            raise InputError(f"alpha={self.alpha:g}: expected a number, 0 or more")
        for name in ("text_temperature", "vision_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name):g}: expected a positive number")

    def rule(self) -> ReductionRule:
        """Greedy."""
        return self._select

    def _select(self, at: SiteContext, keep: int) -> Outcome:
        b = at.b
        unit = normalized(at, at.visual)
        asked = _cover(at, products(at, normalized(at, text_rows(at)), unit), self.text_temperature, 1)
        seen = _cover(at, products(at, unit, unit), self.vision_temperature, self.alpha)
        # A row per candidate: what it gives to each token of the text and of the picture.
        cover = b.op("Transpose", b.op("Concat", asked, seen, axis=1), perm=[0, 2, 1])
        everyone = places(at)
        covered: ir.Value | None = None
        taken: ir.Value | None = None
        chosen = []
        for _ in range(keep):
            more = cover if covered is None else b.op("Relu", b.op("Sub", cover, covered))
            gains = b.op("Transpose", b.op("ReduceSum", more, [2], keepdims=1), perm=[0, 2, 1])
            if taken is not None:
                gains = b.op("Where", taken, np.float32(-np.inf), gains)
            best = b.ops("TopK", 2, gains, [1], axis=-1)[1]
            chosen.append(best)
            row = at.gather_rows(cover, b.op("Reshape", best, [at.batch, 1]), at.tokens, 1)
            covered = row if covered is None else b.op("Max", covered, row)
            hit = b.op("Equal", best, everyone)
            taken = hit if taken is None else b.op("Or", taken, hit)
        kept = b.op("Concat", *chosen, axis=2) if keep > 1 else chosen[0]
        return Outcome(kept=b.op("Reshape", kept, [at.batch, keep]))


def _cover(at: SiteContext, cosine: ir.Value, temperature: float, share: float) -> ir.Value:
    """Return ``share / rows * softmax_j(cosine / temperature)``, ``[B,rows,n]``: its sum over rows is a mean."""
    b = at.b
    shares = b.op("Softmax", b.op("Mul", cosine, np.float32(1 / temperature)), axis=-1)
    rows = b.op("Cast", b.op("Shape", cosine, start=1, end=2), to=FLOAT)
    return b.op("Mul", shares, b.op("Div", np.float32(share), rows))
