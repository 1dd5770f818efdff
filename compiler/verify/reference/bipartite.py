"""Bipartite merging: ToMe's step inside the encoder and AIM's rounds at the vision output."""

from __future__ import annotations

import numpy as np

from lmmprune.compiler.verify.reference.chooser import Chooser
from lmmprune.compiler.verify.reference.cut import CutRefused


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Cosine of two vectors."""
    return float(x @ y) / (float(np.linalg.norm(x)) * float(np.linalg.norm(y)))


def strongest_edges(chooser: Chooser, keys: np.ndarray, a: list[int], b: list[int], count: int) -> dict[int, int]:
    """Return {place of a: place of b} for the ``count`` of a that are nearest to one of b.

    Args:
        chooser: Takes the choices.
        keys: [n,D], compared by cosine.
        a: Places that give.
        b: Places that take.
        count: Edges.

    Raises:
        CutRefused: There are fewer tokens in a.
    """
    if count > len(a):
        raise CutRefused(f"{count} edges wanted, {len(a)} tokens can have one")
    similar = {i: {j: cosine(keys[i], keys[j]) for j in b} for i in a}
    strength = {i: max(similar[i].values()) for i in a}
    edges = {}
    for i in chooser.largest(strength, count, scale=1.0):
        # Only an edge that is taken cares about where it ends.
        edges[i] = chooser.largest(similar[i], 1, scale=1.0)[0]
    return edges


def merge_into(rows: np.ndarray, sizes: list[float], edges: dict[int, int]) -> np.ndarray:
    """Size-weighted means of rows [n,C]: each target with all that join it; the joined rows are left out."""
    result = []
    for place in range(len(rows)):
        if place in edges:
            continue
        group = [place] + [i for i, target in edges.items() if target == place]
        result.append(sum(sizes[i] * rows[i] for i in group) / sum(sizes[i] for i in group))
    return np.stack(result)


def merge_sizes(sizes: list[float], edges: dict[int, int]) -> list[float]:
    """Return the sizes of the tokens left."""
    return [
        size + sum(sizes[i] for i, target in edges.items() if target == place)
        for place, size in enumerate(sizes)
        if place not in edges
    ]


def tome_edges(chooser: Chooser, keys: np.ndarray, keep: int, *, has_cls: bool) -> dict[int, int]:
    """Edges of one ToMe layer: keys [n,D] are the head-mean keys of the patches."""
    n = len(keys)
    even, odd = list(range(0, n, 2)), list(range(1, n, 2))
    a, b = (odd, even) if has_cls else (even, odd)
    return strongest_edges(chooser, keys, a, b, n - keep)


def aim_rounds(chooser: Chooser, features: np.ndarray, keys: np.ndarray, keep: int) -> tuple[np.ndarray, list[int]]:
    """Merge features [n,C] by keys [n,D] until ``keep`` are left; return them and their places."""
    places = list(range(len(features)))
    sizes = [1.0] * len(features)
    while len(places) > keep:
        n = len(places)
        edges = strongest_edges(chooser, keys, list(range(0, n, 2)), list(range(1, n, 2)), min(n - keep, n // 2))
        features, keys = merge_into(features, sizes, edges), merge_into(keys, sizes, edges)
        sizes = merge_sizes(sizes, edges)
        places = [place for row, place in enumerate(places) if row not in edges]
    return features, places
