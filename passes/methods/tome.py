"""ToMe: bipartite merging of similar tokens in every encoder layer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.find.sites import Site, vision_layer
from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.methods.method import Method
from lmmprune.passes.reduce.filters import normalized
from lmmprune.passes.reduce.rules import Merge, Outcome, ReductionRule, ascending, top
from lmmprune.passes.reduce.schedule import Counts
from lmmprune.passes.reduce.site_context import FLOAT, SiteContext
from lmmprune.passes.reduce.stage import Stage


@dataclass(frozen=True, kw_only=True)
class ToMe(Method):
    """Merge, in every encoder layer, the most similar pairs of tokens at even and odd places of a list.

    Similarity is the cosine of head-mean keys; tokens are averaged by how many patches they stand for, and the
    attention of later layers adds ``log(size)``. The next layer's list is the rest of the half that gave, then the half
    that received; behind the last layer tokens are in raster order again. CLS is never merged.

    Reference: Bolya et al., Token Merging, 2022, arXiv 2210.09461 (released code).
    """

    name = "tome"
    reference = "arXiv 2210.09461"
    exactness = "exact; removals spread evenly over the layers before the features, behind which the raster is restored"
    sites = "vision_layer_0..V-1"
    schedule = "N - T removed evenly, at most half per layer"

    def rule(self) -> ReductionRule:
        """Bipartite."""
        return bipartite

    def stages(self, model: Facts, target: int) -> tuple[Stage, ...]:
        """Return a stage per layer; the last one, which always removes something, restores the raster."""
        stages = super().stages(model, target)
        last = (dataclasses.replace(stage, rule=functools.partial(bipartite, raster=True)) for stage in stages[-1:])
        return (*stages[:-1], *last)

    def counts(self, model: Facts, target: int) -> Counts:
        """An even share per layer; where that is more than half of what is left, earlier layers take more."""
        found = even_removal([vision_layer(i) for i in range(model.encoder_layers)], model.tokens, target)
        for i in range(len(found) - 1, 0, -1):
            (site, keep), (_, after) = found[i - 1], found[i]
            found[i - 1] = (site, min(keep, 2 * after))
        if model.tokens > 2 * found[0][1]:
            least = -(-model.tokens // 2**model.encoder_layers)
            raise InputError(
                f"method 'tome' halves the tokens at most, {model.encoder_layers} times:"
                f" keep {least} or more, not {target}"
            )
        return found


def even_removal(sites: Sequence[Site], tokens: int, target: int) -> list[tuple[Site, int]]:
    """Return counts that fall from N evenly: ``N - floor(i * (N - target) / m)`` after the i-th of m sites."""
    m = len(sites)
    return [(site, tokens - (i + 1) * (tokens - target) // m) for i, site in enumerate(sites)]


def bipartite(at: SiteContext, keep: int, *, raster: bool = False) -> Outcome:
    """Merge the ``n - keep`` strongest edges between two halves of the tokens; ``raster``: restore their order."""
    places = at.origin if raster else None
    return pair_up(at, at.mean_keys(), keep, behind_cls=at.has_cls, sizes=at.sizes, places=places)


def pair_up(
    at: SiteContext,
    keys: ir.Value,
    keep: int,
    *,
    behind_cls: bool,
    sizes: ir.Value | None,
    places: ir.Value | None,
) -> Outcome:
    """Write one round of bipartite merging.

    Args:
        at: The site.
        keys: ``[B,n,D]``, compared by cosine.
        keep: Tokens that stay.
        behind_cls: Whether CLS stands before the tokens: then those at odd places give, not those at even ones, and
            what stays of them keeps its order, where else it falls by strength.
        sizes: ``[B,n]``, patches that each token stands for; None: one each.
        places: ``[B,n]``, to leave the tokens in ascending order of them; None: in that of the next round's list.
    """
    b, n, first = at.b, at.tokens, int(behind_cls)
    a, others = (np.arange(start, n, 2, dtype=np.int64) for start in (first, 1 - first))
    going = n - keep
    unit = normalized(at, keys)
    mine, theirs = b.op("Gather", unit, a, axis=1), b.op("Gather", unit, others, axis=1)
    similarity = b.op("MatMul", mine, b.op("Transpose", theirs, perm=[0, 2, 1]))
    strength, edge = b.ops("TopK", 2, similarity, [1], axis=-1)
    order = top(b, b.op("Reshape", strength, [at.batch, len(a)]), len(a))
    out = b.op("Slice", order, [0], [going], [1])
    dropped = _places(b, out, first)
    targets = _places(b, b.op("Reshape", at.gather_rows(edge, out, len(a), going), [at.batch, going]), 1 - first)
    kept = b.constant(np.broadcast_to(others, (at.batch, len(others))).copy())
    if len(a) > going:
        stay = b.op("Slice", order, [going], [len(a)], [1])
        stay = ascending(b, stay, len(a) - going) if behind_cls else stay
        kept = b.op("Concat", _places(b, stay, first), kept, axis=1)
    if places is not None:
        kept = _sorted_by(at, places, kept, keep)
    hit = b.op("Equal", b.op("Unsqueeze", kept, [2]), b.op("Unsqueeze", targets, [1]))
    weights = b.op("Cast", hit, to=FLOAT)
    if sizes is None:
        total = b.op("Add", b.op("ReduceSum", weights, [2], keepdims=0), np.float32(1))
        scaled = weights
    else:
        size_kept = at.gather_entries(sizes, kept, keep)
        size_dropped = at.gather_entries(sizes, dropped, going)
        given = b.op("Mul", weights, b.op("Unsqueeze", size_dropped, [1]))
        total = b.op("Add", size_kept, b.op("ReduceSum", given, [2], keepdims=0))
        scaled = b.op("Div", given, b.op("Unsqueeze", size_kept, [2]))
    merge = Merge(weights=scaled, dropped=dropped)
    return Outcome(kept=kept, merge=merge, sizes=total, ordered=True)


def _places(b: Builder, halves: ir.Value, first: int) -> ir.Value:
    """Turn places within a half into places among all."""
    return b.op("Add", b.op("Mul", halves, b.constant([2])), b.constant([first]))


def _sorted_by(at: SiteContext, places: ir.Value, kept: ir.Value, keep: int) -> ir.Value:
    """Return ``kept [B,K]`` in ascending order of ``places [B,n]``; float32 is exact for them (see ``ascending``)."""
    b = at.b
    wanted = b.op("Cast", at.gather_entries(places, kept, keep), to=FLOAT)
    order = b.ops("TopK", 2, wanted, [keep], axis=-1, largest=0)[1]
    return b.op("Reshape", at.gather_rows(b.op("Unsqueeze", kept, [2]), order, keep, keep), [at.batch, keep])
