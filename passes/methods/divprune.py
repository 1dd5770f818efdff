"""DivPrune: the most diverse subset, by greedy max-min distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.passes.find.sites import PROJECTOR_OUTPUT
from lmmprune.passes.methods.method import Method
from lmmprune.passes.reduce.filters import normalized
from lmmprune.passes.reduce.rules import Outcome, ReductionRule
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
    # -inf to oneself leaves out what is chosen: rounding could set the distance to oneself above that to a duplicate.
    table = b.op("Reshape", b.op("Where", itself, np.float32(-np.inf), distance), [at.batch * n, n])
    chosen = [b.op("ArgMax", nearest, axis=1)]  # [B,1]; ArgMax takes the lower place on ties
    closest: ir.Value | None = None
    for _ in range(keep - 1):
        row = b.op("Gather", table, _flat(at, chosen[-1]), axis=0)  # [B,1,n]
        closest = row if closest is None else b.op("Min", closest, row)
        chosen.append(b.op("ArgMax", closest, axis=2, keepdims=0))
    return Outcome(kept=b.op("Concat", *chosen, axis=1) if keep > 1 else chosen[0])


def _flat(at: SiteContext, places: ir.Value) -> ir.Value:
    """Return the rows of ``[B*n, any]`` that are places ``[B,1]`` of each picture."""
    if at.batch == 1:
        return places
    return at.b.op("Add", places, np.arange(at.batch, dtype=np.int64).reshape(-1, 1) * at.tokens)
