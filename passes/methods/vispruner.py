"""VisPruner: important patches by CLS's attention, diverse ones by dropping near duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.facts import Facts
from lmmprune.passes.methods.method import Method, fraction
from lmmprune.passes.reduce.filters import cls_attention, normalized
from lmmprune.passes.reduce.rules import Outcome, ReductionRule, top
from lmmprune.passes.reduce.site_context import SiteContext, gather_tokens

_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class VisPruner(Method):
    """Keep ``important_fraction`` of K by CLS's attention; of the rest drop duplicates, 8 at a time, until K are left.

    The rest is a list by descending attention. In each round it is split into even and odd places; those of the even
    ones that are most similar to an odd one go, the others of them come first in the next list, by that similarity,
    then the odd ones.

    Reference: Zhang et al., VisPruner, 2024, arXiv 2412.01818v2 (released code).
    """

    important_fraction: float = 0.5

    name = "vispruner"
    reference = "arXiv 2412.01818v2"
    exactness = "exact; on ties the lower place, and lists of odd length are allowed [ours]"
    published_positions = "contiguous"
    needs_cls = True

    def check(self, model: Facts) -> None:
        """Check the share."""
        super().check(model)
        fraction("important_fraction", self.important_fraction)

    def rule(self) -> ReductionRule:
        """Important, then diverse."""
        return self._select

    def _select(self, at: SiteContext, keep: int) -> Outcome:
        b = at.b
        important = int(self.important_fraction * keep)
        if important == keep:
            return Outcome(kept=top(b, cls_attention(at), keep))
        order = top(b, cls_attention(at), at.tokens)
        left, count = b.op("Slice", order, [important], [at.tokens], [1]), at.tokens - important
        unit = normalized(at, at.visual)
        while count > keep - important:
            left, count = self._round(at, unit, left, count, keep - important)
        if not important:
            return Outcome(kept=left)
        return Outcome(kept=b.op("Concat", b.op("Slice", order, [0], [important], [1]), left, axis=1))

    def _round(self, at: SiteContext, unit: ir.Value, left: ir.Value, count: int, wanted: int) -> tuple[ir.Value, int]:
        """Drop the nearest duplicates of a list ``[B,count]``; return the next one and its length."""
        b = at.b
        even, odd = (np.arange(start, count, 2, dtype=np.int64) for start in (0, 1))
        going = min(_AT_ONCE, count - wanted, len(even))
        mine, others = b.op("Gather", left, even, axis=1), b.op("Gather", left, odd, axis=1)
        if going == len(even):
            return others, count - going
        a = gather_tokens(b, unit, mine, (at.batch, at.tokens, len(even)))
        c = gather_tokens(b, unit, others, (at.batch, at.tokens, len(odd)))
        similarity = b.op("MatMul", a, b.op("Transpose", c, perm=[0, 2, 1]))
        closest = b.op("ReduceMax", similarity, [2], keepdims=0)
        # One full sort: the first ones go, the slice behind them stays, in the order of their similarity.
        order = b.op("Slice", top(b, closest, len(even)), [going], [len(even)], [1])
        column = b.op("Unsqueeze", mine, [2])
        stay = b.op("Reshape", at.gather_rows(column, order, len(even), len(even) - going), [at.batch, -1])
        return b.op("Concat", stay, others, axis=1), count - going
