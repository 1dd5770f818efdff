"""LLaVA-PruMerge at the vision output: keep what CLS looks at, gather neighbours, add one token for the rest."""

from __future__ import annotations

import math

import numpy as np

from lmmprune.compiler.verify.reference.bipartite import cosine
from lmmprune.compiler.verify.reference.chooser import Chooser, round_half_up
from lmmprune.compiler.verify.reference.cut import CutRefused
from lmmprune.compiler.verify.reference.encoded import Encoded
from lmmprune.compiler.verify.reference.layer_attention import LayerAttention
from lmmprune.compiler.verify.reference.select import uniform_places


def one_head_attention(attention: LayerAttention) -> tuple[np.ndarray, np.ndarray]:
    """Return the attention of CLS [T] and the keys [T,C] with heads concatenated; CLS is row 0 of the attention."""
    q, k = (np.concatenate(list(heads), axis=-1) for heads in (attention.q, attention.k))
    logits = [float(q[0] @ key) / math.sqrt(q.shape[-1]) for key in k]
    raised = [math.exp(value - max(logits)) for value in logits]
    return np.array(raised) / sum(raised), k


def choose(chooser: Chooser, a: dict[int, float], keep: int, important_fraction: float | None) -> list[int]:
    """Return the keep - 1 patches that stay; important_fraction is None for prumerge, a number for prumerge+."""
    if important_fraction is None:
        return chooser.largest(a, keep - 1)
    m = max(1, round_half_up(important_fraction * (keep - 1)))
    important = chooser.largest(a, m)
    spread = keep - 1 - m
    grid = uniform_places(len(a), spread)
    u = {j: a[j] + 2 * (j in grid) for j in a if j not in important}
    return important + chooser.largest(u, spread)


def prumerge(
    e: Encoded, keep: int, chooser: Chooser, important_fraction: float | None, *, neighbours: int = 32
) -> tuple[np.ndarray, list[int]]:
    """Return the features [K,C] and the places of the kept patches, then -1 for the added token.

    Args:
        e: The picture.
        keep: K.
        chooser: Takes the choices.
        important_fraction: None for prumerge, prumerge+'s share otherwise.
        neighbours: Patches that a kept one gathers.

    Raises:
        CutRefused: There is no layer behind the features, or K < 2.
    """
    looks = [tile.behind for tile in e.tiles if tile.behind is not None]
    if not looks:
        raise CutRefused("prumerge needs the layer behind the features")
    if keep < 2:
        raise CutRefused("prumerge keeps at least 2")
    # CLS and softmax are the tile's own.
    attention, all_keys = zip(*(one_head_attention(attention) for attention in looks), strict=True)
    a, keys, x = e.scores(attention), e.pooled(all_keys), e.x
    chosen = choose(chooser, a, keep, important_fraction)
    order = chooser.ranked({j: a[j] for j in chosen})
    rows = []
    for i in order:
        near = {j: cosine(keys[i], keys[j]) for j in a if j != i}
        gathered = chooser.largest(near, min(neighbours, e.n - 1), scale=1.0)
        rows.append(x[i] + sum(a[j] * x[j] for j in gathered))
    # Zeros first: with every patch kept the sum is empty.
    rows.append(np.zeros_like(x[0]) + sum(a[j] * x[j] for j in a if j not in chosen))
    return np.stack(rows).astype(x.dtype), [*order, -1]
