"""LLaVA-PruMerge: the patches that CLS looks at, each with its neighbours added, and one sum of what was dropped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.methods.method import Method, fraction
from lmmprune.passes.reduce.filters import exclude, normalized
from lmmprune.passes.reduce.rules import Outcome, ReductionRule, top
from lmmprune.passes.reduce.schedule import Counts, round_half_up
from lmmprune.passes.reduce.site_context import SiteContext


@dataclass(frozen=True, kw_only=True)
class PruMerge(Method):
    """Keep K - 1 patches by ``a = softmax(q_CLS . k_j / sqrt(C))`` of the layer behind the features; add one token.

    ``y_i = x_i + sum_{j in NN(i)} a_j x_j`` over the 32 patches with the nearest keys; last ``sum_dropped a_j x_j``;
    in order of falling a.

    Reference: Shang et al., LLaVA-PruMerge, 2024, arXiv 2403.15388 (released code).
    """

    neighbours: int = 32

    name = "prumerge"
    reference = "arXiv 2403.15388"
    exactness = "a fixed count in place of the paper's outlier count; the rest as released"
    published_positions = "contiguous"
    needs_cls = True
    next_layer = True

    def check(self, model: Facts) -> None:
        """Check the neighbourhood."""
        super().check(model)
        if self.neighbours < 1:
            raise InputError(f"neighbours={self.neighbours}: expected 1 or more")

    def counts(self, model: Facts, target: int) -> Counts:
        """K, of which one is the added token."""
        least = model.separators + 2
        if target < least:
            raise InputError(f"method '{self.name}' adds a token to those that it keeps: keep {least} or more")
        return super().counts(model, target)

    def rule(self) -> ReductionRule:
        """Select, add the neighbours, add the sum."""
        return self._merge

    def _select(self, at: SiteContext, a: ir.Value, count: int) -> ir.Value:
        return top(at.b, a, count)

    def _merge(self, at: SiteContext, keep: int) -> Outcome:
        b, n, count = at.b, at.tokens, keep - 1
        next_layer = at.at_layer(at.depth)
        keys, a = self._attention(next_layer)
        chosen = self._select(at, a, count)
        x = b.op("Cast", at.visual, to=int(ir.DataType.FLOAT))
        # a_j x_j of all patches once; each chosen one then adds those of its neighbours.
        weighted = b.op("Mul", x, b.op("Unsqueeze", a, [2]))
        near = normalized(at, keys)
        mine = at.gather(near, chosen, count)
        similarity = b.op("MatMul", mine, b.op("Transpose", near, perm=[0, 2, 1]))
        places = np.arange(n, dtype=np.int64).reshape(1, 1, -1)
        itself = b.op("Equal", b.op("Unsqueeze", chosen, [2]), places)
        similarity = b.op("Where", itself, np.float32(-np.inf), similarity)
        neighbours = b.ops("TopK", 2, similarity, [min(self.neighbours, n - 1)], axis=-1)[1]
        hits = b.op("Equal", b.op("Unsqueeze", neighbours, [3]), places[None])
        chosen_by = b.op("ReduceSum", b.op("Cast", hits, to=int(ir.DataType.FLOAT)), [2], keepdims=0)
        y = b.op("Add", at.gather(x, chosen, count), b.op("MatMul", chosen_by, weighted))
        left = b.op("Equal", exclude(at, b.constant(np.zeros((at.batch, n), np.float32)), chosen), np.float32(0))
        dropped = b.op("Cast", b.op("Unsqueeze", left, [1]), to=int(ir.DataType.FLOAT))
        tokens = b.op("Concat", y, b.op("MatMul", dropped, weighted), axis=1)
        kept = b.op("Concat", chosen, np.full((at.batch, 1), -1, np.int64), axis=1)
        # Every one has neighbours.
        received = b.constant(np.ones((at.batch, keep), np.float32))
        return Outcome(kept=kept, tokens=tokens, received=received, ordered=True)

    def _attention(self, at: SiteContext) -> tuple[ir.Value, ir.Value]:
        """Return the keys ``[B,n,C]`` and CLS's attention on them ``[B,n]`` within their tile, all heads as one."""
        b, (heads, _, width) = at.b, at.layer.heads
        query, keys = at.rows(at.layer.q, "cls", 2), at.layer.k
        one = [b.op("Reshape", b.op("Transpose", v, perm=[0, 2, 1, 3]), [0, 0, heads * width]) for v in (query, keys)]
        query, keys = (b.op("Cast", value, to=int(ir.DataType.FLOAT)) for value in one)
        scaled = b.op("Mul", query, np.float32((heads * width) ** -0.5))
        logits = b.op("MatMul", scaled, b.op("Transpose", keys, perm=[0, 2, 1]))
        attention = b.op("Squeeze", b.op("Softmax", logits, axis=-1), [1])
        return at.visual_rows(keys), at.visual_scores(attention)


@dataclass(frozen=True, kw_only=True)
class PruMergePlus(PruMerge):
    """PruMerge with a uniform grid of patches behind the important ones.

    ``important_fraction`` of the K - 1 patches are important, g are places of a grid, ``floor(i N / g)``, in ascending
    order; where the grid falls on important ones, the next important patches follow it in their place.

    Reference: Shang et al., LLaVA-PruMerge, 2024, arXiv 2403.15388 (released code).
    """

    important_fraction: float = 0.25

    name = "prumerge+"
    exactness = (
        "fixed counts in place of the paper's outlier count; a centred grid, and further important patches in place"
        " of those that are important already; the rest as released"
    )

    def check(self, model: Facts) -> None:
        """Check the share."""
        super().check(model)
        fraction("important_fraction", self.important_fraction)

    def _select(self, at: SiteContext, a: ir.Value, count: int) -> ir.Value:
        b = at.b
        important = min(count, max(1, round_half_up(self.important_fraction * count)))
        chosen = top(b, a, important)
        if important == count:
            return chosen
        size = count - important
        places = np.arange(size) * at.tokens // size
        # The grid comes before all others, whose a is at most 1, and its lower places first.
        ranks = np.full((1, at.tokens), -1, np.float32)
        ranks[0, places] = 2 + at.tokens - places
        others = top(b, exclude(at, b.op("Max", a, ranks), chosen), size)
        return b.op("Concat", chosen, others, axis=1)
