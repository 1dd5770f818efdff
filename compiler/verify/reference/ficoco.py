"""FiCoCo: filter (which tokens go), correlate (where to), compress (how much); encoder and decoder variant."""

from __future__ import annotations

import math

import numpy as np

from lmmprune.compiler.verify.reference.bipartite import cosine
from lmmprune.compiler.verify.reference.chooser import Chooser


def unit(values: np.ndarray) -> np.ndarray:
    """Divide [n] by its L2 norm."""
    return np.asarray(values / np.sqrt((values * values).sum()))


def vision_redundancy(logits: np.ndarray, cls_row: np.ndarray | None, keys: np.ndarray, lambda_: float) -> list[float]:
    """Return the redundancy of n patches.

    Args:
        logits: [n,n], head mean.
        cls_row: [n], the CLS query's logits on them, head mean; None without CLS.
        keys: [n,D], head mean.
        lambda_: Share of what a patch says of the others.
    """
    u = logits.mean(axis=1)
    if cls_row is None:
        mean = keys.mean(axis=0)
        v = np.array([-cosine(mean, key) for key in keys], dtype=keys.dtype)
    else:
        v = cls_row
    return [float(value) for value in lambda_ * unit(u) - (1 - lambda_) * unit(v)]


def penalize(
    chooser: Chooser, s: list[float], patches: list[int], columns: int, *, window: int = 2, coefficient: float = 2.0
) -> list[float]:
    """Make the most redundant patch of every window of the original grid more so.

    Args:
        chooser: Takes the choices.
        s: Redundancy of n patches.
        patches: Which of the N patches they are.
        columns: Of the original grid.
        window: Rows and columns of a window.
        coefficient: A positive redundancy is multiplied by it, a negative one divided.
    """
    windows: dict[tuple[int, int], list[int]] = {}
    for place, patch in enumerate(patches):
        row, column = divmod(patch, columns)
        windows.setdefault((row // window, column // window), []).append(place)
    result = list(s)
    scale = max(abs(value) for value in s)
    for places in windows.values():
        (worst,) = chooser.largest({place: s[place] for place in places}, 1, scale)
        result[worst] = s[worst] * coefficient if s[worst] > 0 else s[worst] / coefficient
    return result


def dropped(chooser: Chooser, s: list[float], keep: int) -> list[int]:
    """Return S, ascending: the len(s) - keep most redundant."""
    scale = max(abs(value) for value in s)
    return sorted(chooser.largest(dict(enumerate(s)), len(s) - keep, scale))


def target_count(keep: int, eps: float) -> int:
    """Return how many entries of a row of ``keep`` lie above its eps quantile."""
    return max(1, keep - 1 - math.floor(eps * (keep - 1)))


def weights(chooser: Chooser, correlation: dict[int, dict[int, float]], eps: float) -> dict[int, dict[int, float]]:
    """From C[i][j], i in S and j in R, to W[i][j] over the targets of i only; every W[i] sums to one."""
    result = {}
    for i, row in correlation.items():
        targets = chooser.largest(row, target_count(len(row), eps))
        total = sum(row[j] for j in targets)
        result[i] = {j: row[j] / total for j in targets}
    return result


def merge(x: np.ndarray, kept: list[int], w: dict[int, dict[int, float]]) -> np.ndarray:
    """Add the dropped rows of x [n,C] to the kept ones: ``(x_j + sum_i W_ij x_i) / (1 + sum_i W_ij)``."""
    result = []
    for j in kept:
        above, below = x[j], 1.0
        for i, row in w.items():
            if j in row:
                above = above + row[j] * x[i]
                below += row[j]
        result.append(above / below)
    return np.stack(result).astype(x.dtype)


def vision_correlation(logits: np.ndarray, kept: list[int], gone: list[int]) -> dict[int, dict[int, float]]:
    """Softmax of a dropped patch's head-mean logits over the kept patches; logits [n,n]."""
    result = {}
    for i in gone:
        top = max(float(logits[i, j]) for j in kept)
        raised = {j: math.exp(float(logits[i, j]) - top) for j in kept}
        total = sum(raised.values())
        result[i] = {j: value / total for j, value in raised.items()}
    return result


def decoder_redundancy(attention: np.ndarray, visual: list[int], text: list[int], beta: float) -> list[float]:
    """Redundancy of the visual rows of a head-mean causal attention [T,T]; visual and text are rows of it."""
    result = []
    for i in visual:
        seen = sum(float(attention[i, j]) for j in visual) / len(visual)
        asked = sum(float(attention[k, i]) for k in text) / len(text)
        result.append(beta * seen - (1 - beta) * asked)
    return result


def decoder_correlation(
    attention: np.ndarray, visual: list[int], text: list[int], kept: list[int], gone: list[int], gamma: float
) -> dict[int, dict[int, float]]:
    """Direct attention and the way over the text; kept and gone are places among ``visual``."""
    result: dict[int, dict[int, float]] = {}
    for i in gone:
        result[i] = {}
        for j in kept:
            direct = float(attention[visual[i], visual[j]])
            over = sum(float(attention[k, visual[i]]) * float(attention[k, visual[j]]) for k in text) / len(text)
            result[i][j] = gamma * direct + (1 - gamma) * over
    return result
