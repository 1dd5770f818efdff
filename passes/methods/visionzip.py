"""VisionZip: dominant patches by CLS's attention, and contextual ones that take in the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.methods.method import Method, fraction
from lmmprune.passes.reduce.affinities import key_similarity
from lmmprune.passes.reduce.filters import cls_attention, total_attention
from lmmprune.passes.reduce.rules import Outcome, ReductionRule, ascending, recycle, rest, top
from lmmprune.passes.reduce.schedule import Counts, round_half_up
from lmmprune.passes.reduce.site_context import FLOAT, SiteContext


@dataclass(frozen=True, kw_only=True)
class VisionZip(Method):
    """Keep CLS, dominant patches, and contextual targets that each other patch joins by similarity of keys.

    ``sum_h A^lp[h,CLS,j]``; of the K tokens the share ``dominant_fraction`` is dominant, CLS among them; targets are
    every so many of the others; ``x_target + mean(joined)``. Without CLS: attention received, no CLS token. Where a
    token is a group of patches, CLS, which is one row, is looked at but not kept [ours]. In a picture of several tiles
    each has a CLS token, and all of them stay [ours].

    Reference: Yang et al., VisionZip, 2024, arXiv 2412.04467 (released code).
    """

    dominant_fraction: float = 54 / 64

    name = "visionzip"
    reference = "arXiv 2412.04467"
    exactness = "exact; dominant and contextual in the ratio of the paper's 54:10; tiles compete for K [ours]"
    published_positions = "contiguous"

    def check(self, model: Facts) -> None:
        """Check the share."""
        super().check(model)
        fraction("dominant_fraction", self.dominant_fraction)

    def counts(self, model: Facts, target: int) -> Counts:
        """K, the CLS tokens of all tiles among them."""
        least = model.separators + model.tiles
        if model.has_cls and model.merge == 1 and target < least:
            raise InputError(f"method '{self.name}' keeps a CLS token of each tile: keep {least} or more")
        return super().counts(model, target)

    def rule(self) -> ReductionRule:
        """Dominant, then contextual."""
        return self._zip

    def _zip(self, at: SiteContext, keep: int) -> Outcome:
        b = at.b
        cls = at.tiles if at.has_cls and at.group == 1 else 0
        dominant = max(1, cls, round_half_up(self.dominant_fraction * keep))
        dominant = max(cls, min(dominant, keep - 1)) if keep >= 2 else dominant
        patches = dominant - cls
        kept: list[ir.Value] = []
        tokens: list[ir.Value] = []
        received: ir.Value | None = None
        if cls:
            kept.append(b.constant(np.full((at.batch, cls), -1, np.int64)))
            rows = at.rows(at.stream, "cls", 1, stream=True)
            if cls > 1:
                rows = b.stream("Reshape", rows, [at.batch, cls, -1])
            tokens.append(b.op("Cast", rows, to=FLOAT))
        others = b.constant(np.tile(np.arange(at.tokens, dtype=np.int64), (at.batch, 1)))
        x = b.op("Cast", at.visual, to=FLOAT)
        if patches:
            score = cls_attention(at) if at.has_cls else total_attention(at)
            chosen = ascending(b, top(b, score, patches), patches)
            others = rest(at, chosen, at.tokens - patches)
            kept.append(chosen)
            tokens.append(at.gather(x, chosen, patches))
        if keep > dominant:
            targets, merged, joined = self._contextual(at, x, others, at.tokens - patches, keep - dominant)
            kept.append(targets)
            tokens.append(merged)
            received = b.op("Concat", np.zeros((at.batch, dominant), np.float32), joined, axis=1)
        if len(kept) == 1:
            return Outcome(kept=kept[0], tokens=tokens[0], received=received, ordered=True)
        places, rows = b.op("Concat", *kept, axis=1), b.op("Concat", *tokens, axis=1)
        return Outcome(kept=places, tokens=rows, received=received, ordered=True)

    def _contextual(
        self, at: SiteContext, x: ir.Value, others: ir.Value, count: int, targets: int
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return the targets' places ``[B,M]``, their tokens ``[B,M,C]``, and how many joined each, ``[B,M]``."""
        b = at.b
        at_places = np.arange(count)[:: max(1, count // targets)][:targets]
        joining = np.setdiff1d(np.arange(count), at_places)
        chosen = b.op("Gather", others, at_places.astype(np.int64), axis=1)
        rows = at.gather(x, chosen, targets)
        if not len(joining):
            return chosen, rows, b.constant(np.zeros((at.batch, targets), np.float32))
        joined = b.op("Gather", others, joining.astype(np.int64), axis=1)
        weights = recycle(b, key_similarity(at, joined, chosen, targets, len(joining)), targets, 1)
        total = b.op("MatMul", weights, at.gather(x, joined, len(joining)))
        size = b.op("ReduceSum", weights, [2], keepdims=1)
        mean = b.op("Div", total, b.op("Max", size, np.float32(1)))
        return chosen, b.op("Add", rows, mean), b.op("Squeeze", size, [2])
