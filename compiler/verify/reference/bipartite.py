"""Bipartite merging: ToMe's step inside the encoder and AIM's rounds at the vision output."""

from __future__ import annotations

import numpy as np

from lmmprune.compiler.verify.reference.chooser import Chooser
from lmmprune.compiler.verify.reference.cut import CutRefused


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Cosine of two vectors."""
    return float(x @ y) / (float(np.linalg.norm(x)) * float(np.linalg.norm(y)))


Edges = dict[int, int]


def strongest_edges(
    chooser: Chooser, keys: np.ndarray, a: list[int], b: list[int], count: int, *, by_strength: bool
) -> tuple[Edges, list[int]]:
    """Return {place of a: place of b} for the ``count`` of a that are nearest to one of b, and the order of the rest.

    Args:
        chooser: Takes the choices.
        keys: [n,D], compared by cosine.
        a: Places that give.
        b: Places that take.
        count: Edges.
        by_strength: Whether those of a that stay are in order of falling strength; else as they were.

    Returns:
        The edges, and the places that stay: those of a, then all of b.

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
    stay = [i for i in a if i not in edges]
    if by_strength:
        stay = chooser.ranked({i: strength[i] for i in stay}, scale=1.0)
    return edges, stay + b


def merge_into(rows: np.ndarray, sizes: list[float], edges: Edges, order: list[int]) -> np.ndarray:
    """Size-weighted means of rows [n,C]: each of ``order`` with all that join it, in that order."""
    result = []
    for place in order:
        group = [place] + [i for i, target in edges.items() if target == place]
        result.append(sum(sizes[i] * rows[i] for i in group) / sum(sizes[i] for i in group))
    return np.stack(result)


def merge_sizes(sizes: list[float], edges: Edges, order: list[int]) -> list[float]:
    """Return the sizes of the tokens left, in that order."""
    return [sizes[place] + sum(sizes[i] for i, target in edges.items() if target == place) for place in order]


def tome_edges(chooser: Chooser, keys: np.ndarray, keep: int, *, has_cls: bool) -> tuple[Edges, list[int]]:
    """Edges of one ToMe layer, and the list of the next one: keys [n,D] are the head-mean keys of the patches."""
    n = len(keys)
    even, odd = list(range(0, n, 2)), list(range(1, n, 2))
    a, b = (odd, even) if has_cls else (even, odd)
    return strongest_edges(chooser, keys, a, b, n - keep, by_strength=not has_cls)


def aim_rounds(chooser: Chooser, features: np.ndarray, keys: np.ndarray, keep: int) -> tuple[np.ndarray, list[int]]:
    """Merge features [n,C] by keys [n,D] until ``keep`` are left; return them and their places, in raster order."""
    places = list(range(len(features)))
    sizes = [1.0] * len(features)
    while len(places) > keep:
        n = len(places)
        even, odd = list(range(0, n, 2)), list(range(1, n, 2))
        edges, order = strongest_edges(chooser, keys, even, odd, min(n - keep, n // 2), by_strength=True)
        features, keys = merge_into(features, sizes, edges, order), merge_into(keys, sizes, edges, order)
        sizes = merge_sizes(sizes, edges, order)
        places = [places[row] for row in order]
    raster = sorted(range(len(places)), key=places.__getitem__)
    return features[raster], [places[row] for row in raster]
