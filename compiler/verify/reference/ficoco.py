"""FiCoCo: filter (which tokens go), correlate (where to), compress (how much); encoder and decoder variant."""

from __future__ import annotations

import math

import numpy as np

from lmmprune.compiler.verify.reference.bipartite import cosine
from lmmprune.compiler.verify.reference.chooser import Chooser
from lmmprune.compiler.verify.reference.cut import CutRefused
from lmmprune.compiler.verify.reference.layer_attention import LayerAttention


def unit(values: np.ndarray) -> np.ndarray:
    """Divide [n] by its L2 norm."""
    return np.asarray(values / np.sqrt((values * values).sum()))


def vision_redundancy(
    look: LayerAttention, *, cls: bool, lambda_: float = 0.35, score: str = "attention"
) -> tuple[list[float], dict[int, float]]:
    """Return the redundancy of n patches, and the size of the terms of each, which is that of its error.

    Args:
        look: The layer's attention, of CLS and the patches.
        cls: Whether row 0 is CLS.
        lambda_: Share of what a patch says of the others.
        score: 'attention' is the paper's; 'logits' are those before the softmax, both terms of length 1.

    Raises:
        CutRefused: There is no such score.
    """
    if score not in ("attention", "logits"):
        raise CutRefused(f"no score {score!r}")
    seen = look.mean_attention if score == "attention" else look.mean_logits
    u = seen[cls:, cls:].mean(axis=1)
    if cls:
        v = seen[0, 1:]
    else:
        mean = look.mean_keys.mean(axis=0)
        v = np.array([-cosine(mean, key) for key in look.mean_keys], dtype=u.dtype)
    if score == "logits":
        u, v = unit(u), unit(v)
    terms = lambda_ * abs(u) + (1 - lambda_) * abs(v)
    if score == "logits":
        # Sums over all logits: their error is of the largest one's size.
        terms = np.full_like(terms, terms.max())
    s = lambda_ * u - (1 - lambda_) * v
    return [float(value) for value in s], {i: float(value) for i, value in enumerate(terms)}


def penalize(
    chooser: Chooser,
    s: list[float],
    scale: dict[int, float],
    patches: list[int],
    columns: int,
    *,
    window: int = 2,
    coefficient: float = 2.0,
) -> list[float]:
    """Make the most redundant patch of every window of the original grid more so.

    Args:
        chooser: Takes the choices.
        s: Redundancy of n patches.
        scale: Size of the terms of each.
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
    for places in windows.values():
        (worst,) = chooser.largest({place: s[place] for place in places}, 1, scale)
        result[worst] = s[worst] * coefficient if s[worst] > 0 else s[worst] / coefficient
    return result


def dropped(chooser: Chooser, s: list[float], scale: dict[int, float], keep: int) -> list[int]:
    """Return S, ascending: the len(s) - keep most redundant, of terms of that size."""
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


def drops(targets: int | str, keep: int, eps: float) -> bool:
    """Return whether the redundant patches are dropped: 0; 'quantile' merges; 'auto' where each has one target.

    Raises:
        CutRefused: There are no such targets.
    """
    choices = {"0": True, "quantile": False, "auto": target_count(keep, eps) == 1}
    if str(targets) not in choices:
        raise CutRefused(f"no targets {targets!r}, only {', '.join(choices)}")
    return choices[str(targets)]


def vision_correlation(
    look: LayerAttention, kept: list[int], gone: list[int], *, cls: bool, score: str = "attention"
) -> dict[int, dict[int, float]]:
    """Attention of a dropped patch on the kept ones; of logits their softmax over the kept ones."""
    if score == "attention":
        attention = look.mean_attention[cls:, cls:]
        return {i: {j: float(attention[i, j]) for j in kept} for i in gone}
    logits, result = look.mean_logits[cls:, cls:], {}
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
