"""Methods at the vision output (and divprune behind the projector) that keep patches as they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmmprune.compiler.verify.reference.bipartite import cosine
from lmmprune.compiler.verify.reference.chooser import Chooser, round_half_up
from lmmprune.compiler.verify.reference.encoded import Encoded


def uniform_places(n: int, count: int) -> list[int]:
    """``floor((i + 1/2) n / count)``, in whole numbers."""
    return [(2 * i + 1) * n // (2 * count) for i in range(count)]


def select(method: str, options: dict[str, Any], e: Encoded, keep: int, chooser: Chooser) -> list[int]:
    """Return the places of the kept patches, ascending.

    Args:
        method: One that keeps patches as they are.
        options: Of its rule.
        e: The picture.
        keep: K.
        chooser: Takes the choices.
    """
    if method == "random":
        return sorted(np.random.default_rng(options.get("seed", 0)).permutation(e.n)[:keep].tolist())
    if method == "uniform":
        return uniform_places(e.n, keep)
    if method == "cls":
        return sorted(chooser.largest(e.cls_score(), keep))
    if method == "vtc-cls":
        layers = [e.cls_score(layer) for layer in range(options["first_layer"], e.layers)]
        return sorted(chooser.largest({j: sum(score[j] for score in layers) for j in range(e.n)}, keep))
    if method == "freepruner":
        return sorted(freepruner(e, keep, chooser, **options))
    if method == "inflection":
        return sorted(chooser.largest(cls_similarity(e), keep, scale=1.0))
    assert method == "vispruner"
    return sorted(vispruner(e, keep, chooser, **options))


def freepruner(e: Encoded, keep: int, chooser: Chooser, *, pivot_fraction: float, shallow_layer: int) -> list[int]:
    """Pivots by attention received at lp, complements by the pivots' attention at a shallow layer."""
    received = e.scores([_columns(last) for last in e.attention()])
    pivots = chooser.largest(received, max(1, round(pivot_fraction * keep)))
    looking = [row for pivot in pivots for row in e.rows(pivot)]
    given = []
    for tile, shallow in enumerate(e.attention(shallow_layer)):
        mine = [row for home, row in looking if home == tile]
        given.append(np.array([sum(float(shallow[i, j]) for i in mine) / len(looking) for j in range(len(shallow))]))
    looked_at = e.scores(given)
    return pivots + chooser.largest({j: u for j, u in looked_at.items() if j not in pivots}, keep - len(pivots))


def _columns(attention: np.ndarray) -> np.ndarray:
    """[T,T] -> [T], what each token receives from the others."""
    rows = range(len(attention))
    return np.array([sum(float(attention[i, j]) for i in rows if i != j) for j in rows])


def cls_similarity(e: Encoded) -> dict[int, float]:
    """Cosine of each row's feature with its tile's CLS token's, mean over the patches of each token."""
    return e.scores([np.array([cosine(row, tile.y[0]) for row in tile.y]) for tile in e.tiles])


def knee_count(scores: list[float], chooser: Chooser) -> int:
    """Return k(x): one more than the place where the sorted curve is farthest from its chord."""
    s = sorted(scores, reverse=True)
    n = len(s)
    distance = {i: abs(s[0] + (s[n - 1] - s[0]) * i / (n - 1) - s[i]) for i in range(n)}
    return chooser.largest(distance, 1, scale=1.0)[0] + 1


def vispruner(e: Encoded, keep: int, chooser: Chooser, *, important_fraction: float = 0.5) -> list[int]:
    """Important patches by CLS attention; of the rest, near duplicates go until enough are left."""
    important = chooser.largest(e.cls_score(), max(1, round_half_up(important_fraction * keep)))
    wanted = keep - len(important)
    left = [j for j in range(e.n) if j not in important]
    if wanted == 0:
        return important
    x = e.x
    while len(left) > wanted:
        a, b = left[0::2], left[1::2]
        nearest = {i: max(cosine(x[i], x[j]) for j in b) for i in a}
        gone = chooser.largest(nearest, min(8, len(left) - wanted, len(a)), scale=1.0)
        left = [j for j in left if j not in gone]
    return important + left


def divprune(features: np.ndarray, keep: int, chooser: Chooser) -> list[int]:
    """Max-min distance of projected features [N,C']; return the kept places, ascending."""
    n = len(features)
    # One value for both directions, so that two mutual nearest neighbours tie exactly.
    distance = [[0.0] * n for _ in range(n)]
    for i in range(n):
        for j in range(i):
            distance[i][j] = distance[j][i] = 1 - cosine(features[i], features[j])
    chosen: list[int] = []
    while len(chosen) < keep:
        others = [j for j in range(n) if j not in chosen]
        nearest = {j: min(distance[j][i] for i in (chosen or others) if i != j) for j in others}
        chosen += chooser.largest(nearest, 1, scale=1.0)
    return sorted(chosen)
