"""DivPrune: the most diverse subset, by greedy max-min distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.passes.find.sites import PROJECTOR_OUTPUT
from lmmprune.passes.methods.method import Method
from lmmprune.passes.reduce.filters import exclude, normalized
from lmmprune.passes.reduce.rules import Outcome, ReductionRule, top
from lmmprune.passes.reduce.site_context import SiteContext


@dataclass(frozen=True, kw_only=True)
class DivPrune(Method):
    """Start with the patch farthest from its nearest neighbour, then add the farthest from those chosen, K times.

    Cosine distance of the projected features; unrolled into K steps.

    Reference: Alvar et al., DivPrune, 2025, arXiv 2503.02175 (released code).
    """

    name = "divprune"
    reference = "arXiv 2503.02175"
    exactness = "exact, but no patch is chosen twice, as a duplicate can be in the released code"
    published_positions = "contiguous"
    site = PROJECTOR_OUTPUT
    sites = "projector_output"

    def rule(self) -> ReductionRule:
        """Greedy."""
        return _greedy


def _greedy(at: SiteContext, keep: int) -> Outcome:
    b, n = at.b, at.tokens
    unit = normalized(at, at.visual)
    cosine = b.op("MatMul", unit, b.op("Transpose", unit, perm=[0, 2, 1]))
    # A product may round (i, j) and (j, i) apart; mutual neighbours must tie, so that the lower place wins.
    both = b.op("Add", cosine, b.op("Transpose", cosine, perm=[0, 2, 1]))
    distance = b.op("Sub", np.float32(1), b.op("Mul", both, np.float32(0.5)))
    itself = b.constant(np.eye(n, dtype=bool)[None])
    nearest = b.op("ReduceMin", b.op("Where", itself, np.float32(np.inf), distance), [2], keepdims=0)
    chosen = [top(b, nearest, 1)]
    closest: ir.Value | None = None
    for _ in range(keep - 1):
        row = b.op("Reshape", at.gather(distance, chosen[-1], 1), [at.batch, n])
        # -inf for chosen ones: rounding could leave the distance to oneself above that to a duplicate.
        row = exclude(at, row, chosen[-1])
        closest = row if closest is None else b.op("Min", closest, row)
        chosen.append(top(b, closest, 1))
    return Outcome(kept=b.op("Concat", *chosen, axis=1) if keep > 1 else chosen[0])
