"""LLaVA-PruMerge at the vision output: keep what CLS looks at, gather neighbours, add one token for the rest."""

from __future__ import annotations

import math

import numpy as np

from lmmprune.compiler.verify.reference.bipartite import cosine
from lmmprune.compiler.verify.reference.chooser import Chooser, round_half_up
from lmmprune.compiler.verify.reference.cut import CutRefused
from lmmprune.compiler.verify.reference.encoded import Encoded
from lmmprune.compiler.verify.reference.layer_attention import LayerAttention


def one_head_attention(attention: LayerAttention) -> tuple[np.ndarray, np.ndarray]:
    """Return the attention of CLS [T] and the keys [T,C] with heads concatenated; CLS is row 0 of the attention."""
    q, k = (np.concatenate(list(heads), axis=-1) for heads in (attention.q, attention.k))
    logits = [float(q[0] @ key) / math.sqrt(q.shape[-1]) for key in k]
    raised = [math.exp(value - max(logits)) for value in logits]
    return np.array(raised) / sum(raised), k


def choose(chooser: Chooser, a: dict[int, float], keep: int, important_fraction: float | None) -> list[int]:
    """Return the keep - 1 patches that stay, in order; important_fraction is None for prumerge."""

    def falling(places: list[int], count: int) -> list[int]:
        largest = chooser.largest({j: a[j] for j in places}, count)
        return chooser.ranked({j: a[j] for j in largest})

    if important_fraction is None:
        return falling(list(a), keep - 1)
    m = max(1, round_half_up(important_fraction * (keep - 1)))
    important, places = falling(list(a), m), keep - 1 - m
    grid = [i * len(a) // places for i in range(places)]
    chosen = important + [j for j in grid if j not in important]
    return chosen + falling([j for j in a if j not in chosen], keep - 1 - len(chosen))


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
    order = choose(chooser, a, keep, important_fraction)
    rows = []
    for i in order:
        near = {j: cosine(keys[i], keys[j]) for j in a if j != i}
        gathered = chooser.largest(near, min(neighbours, e.n - 1), scale=1.0)
        rows.append(x[i] + sum(a[j] * x[j] for j in gathered))
    # Zeros first: with every patch kept the sum is empty.
    rows.append(np.zeros_like(x[0]) + sum(a[j] * x[j] for j in a if j not in order))
    return np.stack(rows).astype(x.dtype), [*order, -1]
