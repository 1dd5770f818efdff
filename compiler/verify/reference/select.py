"""Methods at the vision output (and divprune behind the projector) that keep patches as they are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lmmprune.compiler.verify.reference.bipartite import cosine
from lmmprune.compiler.verify.reference.chooser import Chooser
from lmmprune.compiler.verify.reference.encoded import Encoded
from lmmprune.compiler.verify.reference.greedy import scope


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
    if method in ("cls", "inflection"):
        return sorted(chooser.largest(e.cls_score(), keep))
    if method == "vtc-cls":
        layers = [e.cls_score(layer) for layer in range(options["first_layer"], e.layers)]
        return sorted(chooser.largest({j: sum(score[j] for score in layers) for j in range(e.n)}, keep))
    if method == "freepruner":
        return sorted(freepruner(e, keep, chooser, **options))
    if method == "scope":
        return scope(e, keep, chooser, **options)
    assert method == "vispruner"
    return sorted(vispruner(e, keep, chooser, **options))


def freepruner(e: Encoded, keep: int, chooser: Chooser, *, pivot_fraction: float, shallow_layer: int) -> list[int]:
    """Pivots by attention received at lp, complements by the pivots' attention at a shallow layer."""
    pivots = chooser.largest(e.received(), max(1, round(pivot_fraction * keep)))
    looking = [row for pivot in pivots for row in e.rows(pivot)]
    given = []
    for tile, shallow in enumerate(e.attention(shallow_layer)):
        mine = [row for home, row in looking if home == tile]
        given.append(np.array([sum(float(shallow[i, j]) for i in mine) / len(looking) for j in range(len(shallow))]))
    looked_at = e.scores(given)
    return pivots + chooser.largest({j: u for j, u in looked_at.items() if j not in pivots}, keep - len(pivots))


def knee_count(scores: list[float], chooser: Chooser) -> int:
    """Return k(x): one more than the place where the sorted curve is farthest below its chord."""
    s = sorted(scores, reverse=True)
    n = len(s)
    below = {i: s[0] + (s[n - 1] - s[0]) * i / (n - 1) - s[i] for i in range(n)}
    return chooser.largest(below, 1, scale=s[0])[0] + 1


def vispruner(e: Encoded, keep: int, chooser: Chooser, *, important_fraction: float = 0.5) -> list[int]:
    """Important patches by CLS attention; of the list of the others near duplicates go until enough are left."""
    score = e.cls_score()
    important = chooser.largest(score, math.floor(important_fraction * keep))
    wanted = keep - len(important)
    if wanted == 0:
        return important
    left = chooser.ranked({j: value for j, value in score.items() if j not in important})
    x = e.x
    while len(left) > wanted:
        a, b = left[0::2], left[1::2]
        # By place in the list: on a tie its first entry goes first.
        nearest = {place: max(cosine(x[i], x[j]) for j in b) for place, i in enumerate(a)}
        gone = chooser.largest(nearest, min(8, len(left) - wanted, len(a)), scale=1.0)
        others = chooser.ranked({place: value for place, value in nearest.items() if place not in gone}, scale=1.0)
        left = [a[place] for place in others] + b
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
