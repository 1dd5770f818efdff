"""Greedy choices: what adds most to a coverage of patches or of text, and what spans the largest volume."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from lmmprune.compiler.verify.reference.chooser import Chooser
from lmmprune.compiler.verify.reference.encoded import Encoded

SHORTEST = 1e-12  # a vector's length in the denominator of a cosine
WITHIN_SPAN = 1e-4  # a squared distance to what is chosen that counts as none
ROUNDING = 0.3  # of one: what the error of such a distance is like, which is a sum of squares below it


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[n,C], [m,C] -> [n,m], float64; 0 for a vector of zeros."""
    rows = [one.astype(np.float64) for one in (x, y)]
    one, other = (row / np.maximum(np.linalg.norm(row, axis=1, keepdims=True), SHORTEST) for row in rows)
    return np.asarray(one @ other.T)


def softmax(logits: np.ndarray) -> np.ndarray:
    """[n,m], along the rows."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def grow(
    n: int,
    keep: int,
    chooser: Chooser,
    gains: Callable[[list[int]], np.ndarray],
    scales: Iterable[float],
    add: Callable[[int], None],
) -> list[int]:
    """Choose one after the other.

    Args:
        n: Candidates.
        keep: K.
        chooser: Takes the choices.
        gains: The candidates that are left -> the gain of each.
        scales: Of the error of each candidate's gain.
        add: Is told of each choice.

    Returns:
        The chosen ones, ascending.
    """
    chosen: list[int] = []
    scale = dict(enumerate(scales))
    while len(chosen) < keep:
        others = [j for j in range(n) if j not in chosen]
        values = [float(gain) for gain in gains(others)]
        best = chooser.best(dict(zip(others, values, strict=True)), scale)
        chosen.append(best)
        add(best)
    return sorted(chosen)


def scope(e: Encoded, keep: int, chooser: Chooser, *, alpha: float = 1.0) -> list[int]:
    """Saliency times what a patch adds to the coverage of all patches by their nearest kept one."""
    saliency = np.array(list((e.cls_score() if e.has_cls else e.received()).values())) ** alpha
    similar, covered = cosines(e.x, e.x), np.zeros(e.n)

    def gains(others: list[int]) -> np.ndarray:
        return np.array([saliency[j] * np.maximum(0, similar[:, j] - covered).sum() for j in others])

    def add(j: int) -> None:
        covered[:] = np.maximum(covered, similar[:, j])

    return grow(e.n, keep, chooser, gains, saliency, add)


def determinant(similar: np.ndarray, weights: np.ndarray, keep: int, chooser: Chooser) -> list[int]:
    """Grow the determinant of ``diag(w) S diag(w)`` over the chosen ones; S [n,n] has ones on its diagonal."""
    n = len(weights)
    rows: list[np.ndarray] = []
    left = np.ones(n)  # of each vector, what is orthogonal to the chosen ones, squared

    def gains(others: list[int]) -> np.ndarray:
        for j in others:
            chooser.note(left[j], WITHIN_SPAN, ROUNDING)
        return np.array([weights[j] ** 2 * left[j] if left[j] >= WITHIN_SPAN else 0.0 for j in others])

    def add(j: int) -> None:
        if left[j] >= WITHIN_SPAN:
            row = (similar[j] - sum(row[j] * row for row in rows)) / np.sqrt(left[j])
            rows.append(row)
            left[:] -= row**2

    return grow(n, keep, chooser, gains, ROUNDING * weights**2, add)


def volume(kernel: np.ndarray, keep: int, chooser: Chooser) -> list[int]:
    """Grow the determinant of L [n,n] over the chosen ones; what is within their span counts as none."""
    whole = np.diag(kernel).copy()
    rows: list[np.ndarray] = []
    left = whole.copy()

    def gains(others: list[int]) -> np.ndarray:
        for j in others:
            chooser.note(left[j], WITHIN_SPAN * whole[j], ROUNDING * max(whole[j], SHORTEST))
        return np.array([left[j] if left[j] >= WITHIN_SPAN * whole[j] else 0.0 for j in others])

    def add(j: int) -> None:
        if left[j] >= WITHIN_SPAN * whole[j] and left[j] > 0:
            rows.append((kernel[j] - sum(row[j] * row for row in rows)) / np.sqrt(left[j]))
            left[:] -= rows[-1] ** 2

    return grow(len(kernel), keep, chooser, gains, ROUNDING * np.maximum(whole, SHORTEST), add)


def dpp(features: np.ndarray, keep: int, chooser: Chooser) -> list[int]:
    """Return the kept places of projected features [N,C'], ascending."""
    return determinant(cosines(features, features), np.ones(len(features)), keep, chooser)


def cdpruner(
    x: np.ndarray, text: np.ndarray, keep: int, chooser: Chooser, *, theta: float = 0.5, kernel: str = "exp"
) -> list[int]:
    """Weigh visual tokens [n,C] by their cosine with the mean of the text [M,C]; return the kept places, ascending."""
    near = cosines(x, text.astype(np.float64).mean(axis=0, keepdims=True))[:, 0]
    relevance = (near - near.min()) / max(float(near.max() - near.min()), 1e-6)
    if kernel == "blend":
        similar = cosines(x, x)
        return volume((1 - theta) * similar + theta * np.outer(relevance, relevance) * similar, keep, chooser)
    weights = np.exp(theta / (2 * (1 - theta)) * relevance)
    return determinant(cosines(x, x), weights, keep, chooser)


def mmtok(
    x: np.ndarray,
    text: np.ndarray,
    keep: int,
    chooser: Chooser,
    *,
    alpha: float = 0.5,
    text_temperature: float = 0.02,
    vision_temperature: float = 0.2,
) -> list[int]:
    """Cover the text's embeddings [M,C] and all visual tokens [n,C] by kept ones; kept places, ascending."""
    of_text = softmax(cosines(text, x) / text_temperature)
    of_vision = softmax(cosines(x, x) / vision_temperature)
    a, b = np.zeros(len(text)), np.zeros(len(x))

    def gains(others: list[int]) -> np.ndarray:
        added = [np.maximum(0, of_text[:, j] - a).mean() for j in others]
        return np.array(added) + alpha * np.array([np.maximum(0, of_vision[:, j] - b).mean() for j in others])

    def add(j: int) -> None:
        a[:], b[:] = np.maximum(a, of_text[:, j]), np.maximum(b, of_vision[:, j])

    # What a token may add is at most its column, and so is the error.
    scales = of_text.mean(axis=0) + alpha * of_vision.mean(axis=0)
    return grow(len(x), keep, chooser, gains, scales, add)
