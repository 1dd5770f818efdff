"""SCOPE: patches that CLS looks at and that cover what the chosen ones don't resemble, one by one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.methods.method import Method
from lmmprune.passes.reduce.filters import cls_attention, normalized, received_attention
from lmmprune.passes.reduce.rules import Outcome, ReductionRule, top
from lmmprune.passes.reduce.site_context import SiteContext


@dataclass(frozen=True, kw_only=True)
class Scope(Method):
    """Choose K times the patch with the largest ``a_j^alpha * sum_u max(0, cos(x_u, x_j) - cur_u)``.

    ``a_j = mean_h A^lp[h,CLS,j]``, ``cur_u`` the largest cosine of u with a patch chosen so far (0 at first), x what
    enters the projector. Without CLS ``a_j`` is the attention received [ours]. Unrolled into K steps.

    Reference: Deng et al., SCOPE, 2025, arXiv 2510.24214 (released code).
    """

    alpha: float = 1.0

    name = "scope"
    reference = "arXiv 2510.24214"
    exactness = "exact, in float32; without CLS by the attention received, and tiles compete for K [ours]"
    published_positions = "contiguous"

    def check(self, model: Facts) -> None:
        """Check the power."""
        super().check(model)
        if self.alpha <= 0:
            raise InputError(f"alpha={self.alpha:g}: expected more than 0")

    def rule(self) -> ReductionRule:
        """Greedy."""
        return self._greedy

    def _greedy(self, at: SiteContext, keep: int) -> Outcome:
        b, n = at.b, at.tokens
        weights = self._weights(at)
        unit = normalized(at, at.visual)
        cosine = b.op("MatMul", unit, b.op("Transpose", unit, perm=[0, 2, 1]))
        uncovered = cosine
        covered: ir.Value | None = None
        closed: ir.Value | None = None
        places = np.arange(n, dtype=np.int64).reshape(1, -1)
        chosen: list[ir.Value] = []
        while True:
            # Rows are candidates and columns what they cover, so that the sum runs along the memory.
            gain = b.op("ReduceSum", b.op("Relu", uncovered), [2], keepdims=0)
            score = b.op("Mul", gain, weights)
            if closed is not None:
                score = b.op("Where", closed, np.float32(-np.inf), score)
            chosen.append(top(b, score, 1))
            if len(chosen) == keep:
                return Outcome(kept=b.op("Concat", *chosen, axis=1) if keep > 1 else chosen[0])
            taken = b.op("Equal", chosen[-1], places)
            closed = taken if closed is None else b.op("Or", closed, taken)
            row = at.gather(cosine, chosen[-1], 1)
            covered = b.op("Max", row, np.float32(0) if covered is None else covered)
            uncovered = b.op("Sub", cosine, covered)

    def _weights(self, at: SiteContext) -> ir.Value:
        attention = cls_attention(at) if at.has_cls else received_attention(at)
        return attention if self.alpha == 1 else at.b.op("Pow", attention, np.float32(self.alpha))
