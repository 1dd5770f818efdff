"""What the methods that cut behind the encoder choose, in NumPy over single entries: formulas.md once more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from towers import Tower

from lmmprune.passes.methods import Method


@dataclass(frozen=True)
class Picture:
    """One picture of a tower's batch; heads first, float64.

    ``attention``: per layer ``[H,T,T]``; ``key``: head-mean keys of the tokens ``[N,D]`` in the last layer before the
    features; ``x``: tokens ``[N,C]``; ``first``: row of the first patch; ``members``: the patches of each token;
    ``grid``: rows and columns of tokens.
    """

    attention: list[np.ndarray]
    key: np.ndarray
    hidden: np.ndarray
    x: np.ndarray
    features: np.ndarray
    first: int
    members: list[list[int]]
    grid: tuple[int, int]
    next_layer: tuple[np.ndarray, np.ndarray] | None

    def rows(self, token: int) -> list[int]:
        """Rows of the sequence that make a token."""
        return [self.first + patch for patch in self.members[token]]

    def pooled(self, values: np.ndarray) -> np.ndarray:
        """From one value or row per row of the sequence to means per token."""
        return np.array([values[self.rows(j)].mean(axis=0) for j in range(len(self.members))])


# The places of the tokens in the order that the graph shall give them, -1 for none; and the tokens, if they are new.
Choice = tuple[list[int], np.ndarray | None]


def pictures(tower: Tower) -> list[Picture]:
    """Return what the formulas need, per picture."""
    layers, hidden = tower.forward()
    first, last = int(tower.has_cls), layers[tower.layers - 1]
    features = tower.features()
    tokens = tower.shuffled(hidden[:, first:])

    def joined(heads: np.ndarray) -> np.ndarray:
        return heads.transpose(1, 0, 2).reshape(heads.shape[1], -1)

    return [
        Picture(
            attention=[seen.attention[i] for seen in layers[: tower.layers]],
            key=np.array([last.k[i].mean(axis=0)[first:][square].mean(axis=0) for square in tower.members]),
            hidden=hidden[i],
            x=tokens[i],
            features=features[i],
            first=first,
            members=tower.members,
            grid=tower.grid,
            next_layer=(joined(layers[-1].q[i]), joined(layers[-1].k[i])) if tower.next_layer else None,
        )
        for i in range(tower.batch)
    ]


def half_up(value: float) -> int:
    return int(np.floor(value + 0.5))


def top(scores: np.ndarray, count: int) -> list[int]:
    """Largest first, the lower index on ties."""
    return sorted(range(len(scores)), key=lambda j: (-scores[j], j))[:count]


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([[u @ v / np.sqrt((u @ u) * (v @ v)) for v in b] for u in a])


def given_by_cls(p: Picture, layer: int) -> np.ndarray:
    return np.array([p.attention[layer][:, 0, p.rows(j)].mean() for j in range(len(p.x))])


def cls(p: Picture, keep: int, method: Method) -> Choice:
    return sorted(top(given_by_cls(p, -1), keep)), None


def vtc_cls(p: Picture, keep: int, method: Method) -> Choice:
    depth = len(p.attention)
    first = min(half_up(method.parameters["first_layer"] * depth / 23), depth - 1)
    return sorted(top(sum(given_by_cls(p, layer) for layer in range(first, depth)), keep)), None


def random(p: Picture, keep: int, method: Method) -> Choice:
    return sorted(np.random.default_rng(0).permutation(len(p.x))[:keep]), None


def uniform(p: Picture, keep: int, method: Method) -> Choice:
    return [int(np.floor((i + 0.5) * len(p.x) / keep)) for i in range(keep)], None


def freepruner(p: Picture, keep: int, method: Method) -> Choice:
    depth = len(p.attention)
    layer = min(half_up(method.parameters["shallow_layer"] * depth / 23), depth - 1)
    last, shallow = p.attention[-1], p.attention[layer]
    n, rows = len(p.x), range(last.shape[1])
    received = p.pooled(np.array([sum(last[:, i, j].mean() for i in rows if i != j) for j in rows]))
    pivots = top(received, max(1, round(method.parameters["pivot_fraction"] * keep)))
    looking = [row for pivot in pivots for row in p.rows(pivot)]
    rest = np.array([np.mean([shallow[:, i, j].mean() for i in looking for j in p.rows(t)]) for t in range(n)])
    rest[pivots] = -np.inf
    return sorted(pivots + top(rest, keep - len(pivots))), None


def scope(p: Picture, keep: int, method: Method) -> Choice:
    last, similar, n = p.attention[-1].mean(axis=0), cosines(p.x, p.x), len(p.x)
    saliency = p.pooled(last[0] if p.first else last.sum(axis=0) - last.diagonal()) ** method.parameters["alpha"]

    def covered(tokens: list[int]) -> float:
        return sum(max([0.0, *similar[u, tokens]]) for u in range(n))

    chosen: list[int] = []
    for _ in range(keep):
        gain = [saliency[j] * (covered([*chosen, j]) - covered(chosen)) for j in range(n)]
        chosen += top(np.where(np.isin(range(n), chosen), -np.inf, gain), 1)
    return sorted(chosen), None


def dpp(p: Picture, keep: int, method: Method) -> Choice:
    unit = p.features / np.linalg.norm(p.features, axis=1, keepdims=True)
    chosen = [0]
    while len(chosen) < keep:
        span = unit[chosen].T
        beyond = np.array([((span @ np.linalg.lstsq(span, u, rcond=1e-9)[0] - u) ** 2).sum() for u in unit])
        beyond[beyond < 1e-4] = 0
        beyond[chosen] = -np.inf
        chosen += top(beyond, 1)
    return sorted(chosen), None


def downsample(p: Picture, keep: int, method: Method) -> Choice:
    rows, columns = p.grid
    picture = p.x.reshape(rows, columns, -1)
    lines = min(rows, keep, max(half_up(np.sqrt(keep * rows / columns)), -(-keep // columns)))
    tall = np.split(np.repeat(picture, lines, axis=0), lines)
    places, tokens = [], []
    for i, band in enumerate(tall):
        count = (i + 1) * keep // lines - i * keep // lines
        for j, window in enumerate(np.split(np.repeat(band, count, axis=1), count, axis=1)):
            tokens.append(window.mean(axis=(0, 1)))
            places.append(int((i + 0.5) * rows / lines) * columns + int((j + 0.5) * columns / count))
    return places, np.array(tokens)


def divprune(p: Picture, keep: int, method: Method) -> Choice:
    distance = 1 - cosines(p.features, p.features)
    n = len(distance)
    nearest = [min(distance[j, i] for i in range(n) if i != j) for j in range(n)]
    chosen = top(np.array(nearest), 1)
    while len(chosen) < keep:
        nearest = [-np.inf if j in chosen else min(distance[j, i] for i in chosen) for j in range(n)]
        chosen += top(np.array(nearest), 1)
    return sorted(chosen), None


def visionzip(p: Picture, keep: int, method: Method) -> Choice:
    dominant = max(1, half_up(method.parameters["dominant_fraction"] * keep))
    dominant = min(dominant, keep - 1) if keep >= 2 else dominant
    score = p.attention[-1][:, 0 if p.first else slice(None)].sum(axis=0)
    # CLS is one row: where a token is made of several, it can't be one.
    keeps_cls = int(p.first and len(p.members[0]) == 1)
    chosen = sorted(top(p.pooled(score if p.first else score.sum(axis=0)), dominant - keeps_cls))
    others = [j for j in range(len(p.x)) if j not in chosen]
    targets = others[:: max(1, len(others) // max(1, keep - dominant))][: keep - dominant]
    joined: dict[int, list[int]] = {target: [] for target in targets}
    for j in others:
        if targets and j not in targets:
            joined[targets[top(cosines(p.key[[j]], p.key[targets])[0], 1)[0]]].append(j)
    tokens = [p.hidden[0]] * keeps_cls + [p.x[j] for j in chosen]
    tokens += [p.x[t] + (p.x[members].mean(axis=0) if members else 0) for t, members in joined.items()]
    return [-1] * keeps_cls + chosen + targets, np.array(tokens)


def vispruner(p: Picture, keep: int, method: Method) -> Choice:
    important = int(np.floor(method.parameters["important_fraction"] * keep))
    order = top(given_by_cls(p, -1), len(p.x))
    chosen = order[:important]
    left = order[important:] if keep > important else []
    while len(left) > keep - important:
        a, b = left[::2], left[1::2]
        nearest_first = top(cosines(p.x[a], p.x[b]).max(axis=1), len(a))
        gone = min(8, len(left) - (keep - important), len(a))
        left = [a[i] for i in nearest_first[gone:]] + b
    return sorted(chosen + left), None


def prumerge(p: Picture, keep: int, method: Method) -> Choice:
    assert p.next_layer is not None
    q, k = p.next_layer
    n, count = len(p.x), keep - 1
    weights = np.exp(q[0] @ k.T / np.sqrt(k.shape[1]))
    a, keys = p.pooled(weights / weights.sum()), p.pooled(k)
    chosen = top(a, count)
    if method.name == "prumerge+":
        chosen = top(a, max(1, half_up(method.parameters["important_fraction"] * count)))
        size = count - len(chosen)
        chosen += [j for j in (int(np.floor(i * n / size)) for i in range(size)) if j not in chosen]
        chosen += top(np.where(np.isin(range(n), chosen), -np.inf, a), count - len(chosen))
    similarity = cosines(keys, keys)
    np.fill_diagonal(similarity, -np.inf)
    near = [top(similarity[i], min(method.parameters["neighbours"], n - 1)) for i in chosen]
    tokens = [p.x[i] + sum(a[j] * p.x[j] for j in nn) for i, nn in zip(chosen, near, strict=True)]
    tokens.append(sum((a[j] * p.x[j] for j in range(n) if j not in chosen), np.zeros(p.x.shape[1])))
    return [*chosen, -1], np.array(tokens)


FORMULAS: dict[str, Callable[[Picture, int, Method], Choice]] = {
    "cls": cls,
    "vtc-cls": vtc_cls,
    "random": random,
    "uniform": uniform,
    "freepruner": freepruner,
    "inflection": cls,
    "scope": scope,
    "downsample": downsample,
    "dpp": dpp,
    "divprune": divprune,
    "visionzip": visionzip,
    "vispruner": vispruner,
    "prumerge": prumerge,
    "prumerge+": prumerge,
}
