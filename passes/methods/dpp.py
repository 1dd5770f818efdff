"""A determinantal point process: the patches that span the largest volume, greedily."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.passes.find.sites import PROJECTOR_OUTPUT
from lmmprune.passes.methods.method import Method
from lmmprune.passes.reduce.embedded import places, products
from lmmprune.passes.reduce.filters import normalized
from lmmprune.passes.reduce.rules import Outcome, ReductionRule
from lmmprune.passes.reduce.site_context import SiteContext

# Of a squared length of 1: what is less outside the span of those chosen is rounding, not another direction.
_WITHIN = np.float32(1e-4)


@dataclass(frozen=True, kw_only=True)
class Dpp(Method):
    """Add the patch with the largest part outside the span of those chosen, K times; the first is patch 0.

    Directions of the projected features; unrolled into K steps. CDPruner without the question.

    Reference: Zhang et al., CDPruner, 2025, arXiv 2506.10967 (released code).
    """

    name = "dpp"
    reference = "arXiv 2506.10967"
    exactness = "exact for weights of 1; the first pick, a tie of all, is the first patch [ours]"
    published_positions = "contiguous"
    site = PROJECTOR_OUTPUT
    sites = "projector_output"

    def rule(self) -> ReductionRule:
        """Greedy, all weights 1."""

        def unweighted(at: SiteContext, keep: int) -> Outcome:
            ones = at.b.constant(np.ones((at.batch, 1, at.tokens), np.float32))
            return greedy_map(at, likeness(at), ones, keep)

        return unweighted


def likeness(at: SiteContext) -> ir.Value:
    """Return the cosines S of the visual tokens, ``[B,n,n]`` float32."""
    unit = normalized(at, at.visual)
    return products(at, unit, unit)


def weighted(at: SiteContext, kernel: ir.Value, weights: ir.Value) -> ir.Value:
    """Return ``diag(w) S diag(w)`` of S ``[B,n,n]`` and w ``[B,1,n]``."""
    b = at.b
    return b.op("Mul", b.op("Mul", kernel, weights), b.op("Transpose", weights, perm=[0, 2, 1]))


def greedy_map(at: SiteContext, kernel: ir.Value, diagonal: ir.Value, keep: int) -> Outcome:
    """Choose K tokens by greedy MAP inference for a kernel.

    Args:
        at: A site.
        kernel: L, ``[B,n,n]`` float32.
        diagonal: Its diagonal by its definition, ``[B,1,n]`` float32, 0 or more: whatever rounding makes of a length of
            1 would decide between equal weights.
        keep: K.

    Reference: Chen et al., Fast greedy MAP inference for DPPs, 2018, arXiv 1709.05135.
    """
    b, outside = at.b, diagonal
    least = b.op("Mul", outside, _WITHIN)
    floor = b.op("Mul", outside, np.float32(0))
    everyone = places(at)
    factor: ir.Value | None = None
    chosen = []
    for _ in range(keep):
        value, best = b.ops("TopK", 2, outside, [1], axis=-1)
        chosen.append(best)
        if len(chosen) == keep:
            break
        index = b.op("Reshape", best, [at.batch, 1])
        row = at.gather_rows(kernel, index, at.tokens, 1)
        if factor is not None:
            row = b.op("Sub", row, b.op("MatMul", _column(at, factor, index), factor))
        # 1 / sqrt(d), and 0 where d is.
        row = b.op("Mul", row, b.op("Div", b.op("Sqrt", value), b.op("Max", value, np.float32(1e-20))))
        factor = row if factor is None else b.op("Concat", factor, row, axis=1)
        left = b.op("Sub", outside, b.op("Mul", row, row))
        # Within the span rounding would decide: 0, so that the lower place wins; below it those chosen.
        floor = b.op("Where", b.op("Equal", best, everyone), np.float32(-1), floor)
        outside = b.op("Where", b.op("Less", left, least), floor, left)
    kept = b.op("Concat", *chosen, axis=2) if keep > 1 else chosen[0]
    return Outcome(kept=b.op("Reshape", kept, [at.batch, keep]))


def _column(at: SiteContext, factor: ir.Value, index: ir.Value) -> ir.Value:
    """Return the entries of one token, ``[B,1,t]``, of ``factor [B,t,n]``."""
    b = at.b
    if at.batch > 1:
        return at.gather_rows(b.op("Transpose", factor, perm=[0, 2, 1]), index, at.tokens, 1)
    return b.op("Transpose", b.op("Gather", factor, b.op("Reshape", index, [1]), axis=2), perm=[0, 2, 1])
