"""LLaVA-PruMerge at the vision output: keep what CLS looks at, gather neighbours, add one token for the rest."""

from __future__ import annotations

import math

import numpy as np

from lmmprune.compiler.reference.bipartite import cosine
from lmmprune.compiler.reference.chooser import Chooser, round_half_up
from lmmprune.compiler.reference.cut import Refused
from lmmprune.compiler.reference.encoded import Encoded
from lmmprune.compiler.reference.look import Look
from lmmprune.compiler.reference.select import uniform_places


def one_head_attention(look: Look) -> tuple[dict[int, float], np.ndarray]:
    """Return a_j of each patch of a tile and the keys [N,C] with heads concatenated; CLS is token 0 of the look."""
    q, k = (np.concatenate(list(heads), axis=-1) for heads in (look.q, look.k))
    logits = [float(q[0] @ key) / math.sqrt(q.shape[-1]) for key in k]
    raised = [math.exp(value - max(logits)) for value in logits]
    return {j: raised[j + 1] / sum(raised) for j in range(len(k) - 1)}, k[1:]


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
        Refused: There is no layer behind the features, or K < 2.
    """
    looks = [tile.behind for tile in e.tiles if tile.behind is not None]
    if not looks:
        raise Refused("prumerge needs the layer behind the features")
    if keep < 2:
        raise Refused("prumerge keeps at least 2")
    found = [one_head_attention(look) for look in looks]
    a = {j: found[tile][0][place] for j, (tile, place) in enumerate(e.where)}
    keys = np.stack([found[tile][1][place] for tile, place in e.where])
    x = e.x
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
