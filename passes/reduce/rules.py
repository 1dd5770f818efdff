"""Rules: filter, correlate and compress put together into what happens to the tokens of a site."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.reduce.filters import exclude
from lmmprune.passes.reduce.site_context import FLOAT, INT64, SiteContext


@dataclass(frozen=True, kw_only=True)
class Merge:
    """What dropped tokens give to kept ones: ``x_R + W @ x_S``, divided by ``1 + rowsum W`` if ``mean``.

    Attributes:
        weights: W, ``[B,K,n-K]`` float32.
        dropped: S, ``[B,n-K]`` int64 places.
        mean: Whether to divide.
    """

    weights: ir.Value
    dropped: ir.Value
    mean: bool = True


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a rule decided.

    Attributes:
        kept: R, ``[B,K]`` int64 places among the n tokens; -1 for a token that is none of them (with ``tokens`` only).
        merge: What the dropped ones give to the kept ones.
        tokens: ``[B,K,C]``, the new tokens themselves, in the order of ``kept`` (sites in the encoder only).
        sizes: ``[B,K]`` float32, patches that a token stands for from now on.
        received: ``[B,K]`` float32, 0 where no other token went into a token; told by ``merge`` where there is one.
        ordered: Whether ``kept`` already has the order that the tokens shall have; else it is sorted.
    """

    kept: ir.Value
    merge: Merge | None = None
    tokens: ir.Value | None = None
    sizes: ir.Value | None = None
    received: ir.Value | None = None
    ordered: bool = False


class ReductionRule(Protocol):
    """Decides which of the n tokens of a site stay."""

    def __call__(self, at: SiteContext, keep: int) -> Outcome:
        """Write the decision; 1 <= keep < n."""
        ...


Filter = Callable[[SiteContext], ir.Value]
# (at, dropped [B,n-K], kept [B,K], K) -> [B,n-K,K], how much each dropped token has to do with each kept one.
Correlate = Callable[[SiteContext, ir.Value, ir.Value, int], ir.Value]


@dataclass(frozen=True, kw_only=True)
class Reduce:
    """Filter, correlate, compress.

    Attributes:
        filter: Scores ``[B,n]``.
        redundancy: Whether the largest scores go (rather than stay).
        correlate: Affinity of dropped to kept tokens; None: they are dropped without a trace.
        epsilon: Each dropped token gives itself to the kept ones whose affinity reaches this quantile of its row.
    """

    filter: Filter
    redundancy: bool = False
    correlate: Correlate | None = None
    epsilon: float = 1.0

    def __call__(self, at: SiteContext, keep: int) -> Outcome:
        """Write it."""
        b, n = at.b, at.tokens
        scores = padded(at, self.filter(at))
        if self.correlate is None and not self.redundancy:
            return Outcome(kept=top(b, scores, keep))
        # One full sort and two slices: two TopK calls could overlap on ties.
        order = top(b, scores, n)
        first = n - keep if self.redundancy else keep
        head, tail = b.op("Slice", order, [0], [first], [1]), b.op("Slice", order, [first], [n], [1])
        kept, dropped = (tail, head) if self.redundancy else (head, tail)
        if self.correlate is None:
            return Outcome(kept=kept)
        kept = ascending(b, kept, keep)
        affinity = self.correlate(at, dropped, kept, keep)
        weights = recycle(b, affinity, keep, targets(keep, self.epsilon))
        return Outcome(kept=kept, merge=Merge(weights=weights, dropped=dropped), ordered=True)


def top(b: Builder, scores: ir.Value, count: int) -> ir.Value:
    """Return the places of the largest scores, ``[B,count]``, largest first, the lower place on ties."""
    return b.ops("TopK", 2, scores, [count], axis=-1)[1]


def padded(at: SiteContext, scores: ir.Value) -> ir.Value:
    """Give the scores of a decode step, of which there are fewer, the static width n."""
    if not at.decodes:
        return scores
    b = at.b
    longer = b.op("Concat", scores, np.zeros((at.batch, at.tokens), np.float32), axis=1)
    return b.op("Reshape", b.op("Slice", longer, [0], [at.tokens], [1]), [at.batch, at.tokens])


def ascending(b: Builder, indices: ir.Value, count: int) -> ir.Value:
    """Sort ``[B,K]`` int64 indices in ascending order: TopK is the one sort that every target has.

    The sort runs on float32, exact below 2**24, because TensorRT 10.3's TopK takes no int64.
    """
    values = b.ops("TopK", 2, b.op("Cast", indices, to=FLOAT), [count], axis=-1, largest=0)[0]
    return b.op("Cast", values, to=INT64)


def rest(at: SiteContext, indices: ir.Value, count: int) -> ir.Value:
    """Return the places among the n that aren't in ``indices [B,K]``, ascending: ``[B,n-K]``, n-K = count."""
    descending = -np.arange(at.tokens, dtype=np.float32)
    scores = exclude(at, at.b.constant(np.broadcast_to(descending, (at.batch, at.tokens)).copy()), indices)
    return top(at.b, scores, count)


def targets(kept: int, epsilon: float) -> int:
    """Return how many entries of a row of K reach its ``epsilon`` quantile: constant, so static-shape exact.

    Reference: Han et al., FiCoCo, 2024, arXiv 2411.17686: two for 502..577 entries at 0.998, one below.
    """
    return max(1, kept - 1 - math.floor(epsilon * (kept - 1)))


def recycle(b: Builder, affinity: ir.Value, keep: int, count: int) -> ir.Value:
    """Return W ``[B,K,S]``: each dropped token's affinities to its ``count`` nearest, made to sum to one.

    Args:
        b: Tape.
        affinity: ``[B,S,K]`` float32.
        keep: K.
        count: Targets of each dropped token.
    """
    values, places = b.ops("TopK", 2, affinity, [count], axis=-1)
    columns = np.arange(keep, dtype=np.int64)
    if count == 1:
        # One target gets all of it, whatever the affinity.
        weights = b.op("Cast", b.op("Equal", places, columns.reshape(1, 1, -1)), to=FLOAT)
        return b.op("Transpose", weights, perm=[0, 2, 1])
    total = b.op("ReduceSum", values, [2], keepdims=1)
    shares = b.op("Unsqueeze", b.op("Div", values, b.op("Max", total, np.float32(1e-30))), [3])
    hits = b.op("Cast", b.op("Equal", b.op("Unsqueeze", places, [3]), columns.reshape(1, 1, 1, -1)), to=FLOAT)
    weights = b.op("ReduceSum", b.op("Mul", hits, shares), [2], keepdims=0)
    return b.op("Transpose", weights, perm=[0, 2, 1])


def merge_targets(b: Builder, outcome: Outcome) -> ir.Value | None:
    """Return which tokens others went into, ``[B,K]`` int64 0 or 1; None if the rule merges nothing."""
    received = outcome.received
    if outcome.merge is not None:
        received = b.op("ReduceSum", outcome.merge.weights, [2], keepdims=0)
    # An integer means the same in a graph of any floating-point type.
    return None if received is None else b.op("Cast", b.op("Greater", received, np.float32(0)), to=INT64)


def merged(b: Builder, kept: ir.Value, dropped: ir.Value, merge: Merge) -> ir.Value:
    """Return ``x_R + W @ x_S``, divided or not, ``[B,K,C]`` float32.

    Args:
        b: Tape.
        kept: x_R ``[B,K,C]``.
        dropped: x_S ``[B,n-K,C]``.
        merge: W.
    """
    gift = b.op("MatMul", merge.weights, b.op("Cast", dropped, to=FLOAT))
    total = b.op("Add", b.op("Cast", kept, to=FLOAT), gift)
    if not merge.mean:
        return total
    share = b.op("Add", b.op("ReduceSum", merge.weights, [2], keepdims=1), np.float32(1))
    return b.op("Div", total, share)
