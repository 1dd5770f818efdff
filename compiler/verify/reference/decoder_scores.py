"""Scores of visual tokens before a decoder layer, from the attention of the layer before it."""

from __future__ import annotations

import math

import numpy as np

from lmmprune.compiler.verify.reference.chooser import Chooser
from lmmprune.compiler.verify.reference.greedy import softmax
from lmmprune.compiler.verify.reference.layer_attention import LayerAttention


def row_score(layer: LayerAttention, rows: list[int], columns: list[int]) -> list[float]:
    """Mean over the heads and the query rows of the attention on each of the columns; rows of the prompt."""
    attention = layer.mean_attention
    return [sum(float(attention[t, j]) for t in rows) / len(rows) for j in columns]


def prior_score(layer: LayerAttention, visual: list[int], text: list[int]) -> tuple[dict[int, float], dict[int, float]]:
    """Return PriorTR's score of each place among the visual rows, and the size of its error.

    How much more the text looks at a token than its first word does, which hasn't read the question yet.
    """

    def share(rows: list[int]) -> list[float]:
        given = row_score(layer, rows, visual)
        return [value / max(sum(given), 1e-12) for value in given]

    asked, prior = share(text), share(text[:1])
    pairs = dict(enumerate(zip(asked, prior, strict=True)))
    score = {j: p * (math.log(max(p, 1e-12)) - math.log(max(q, 1e-12))) for j, (p, q) in pairs.items()}
    return score, dict(enumerate(asked))


def raters(chooser: Chooser, image: np.ndarray, text: np.ndarray) -> list[int]:
    """Return the places in the text [T,C] of SparseVLM's raters; image [K,C] is what enters layer 0 beside it."""
    relevance = [0.0] * len(text)
    for e_v in image:
        logits = [float(e_v @ e_t) for e_t in text]
        raised = [math.exp(value - max(logits)) for value in logits]
        for t, value in enumerate(raised):
            relevance[t] += value / sum(raised) / len(image)
    mean = sum(relevance) / len(relevance)
    if len(text) > 1:
        for value in relevance:
            chooser.note(value, mean)
    return [t for t, value in enumerate(relevance) if value > mean] or list(range(len(text)))


def page_rank(attention: LayerAttention, visual: list[int], *, temperature: float = 0.1, steps: int = 5) -> list[float]:
    """Return AIM's score: importance flows along sharpened attention among the visual tokens, in each head by itself.

    Args:
        attention: The layer before the cut.
        visual: Rows of the n visual tokens.
        temperature: What the logits are divided by.
        steps: How often importance flows.
    """
    n = len(visual)
    squares = np.zeros(n)
    for logits in attention.logits:
        flow = softmax(logits[np.ix_(visual, visual)].astype(np.float64) / temperature)
        p = np.full(n, 1 / n)
        for _ in range(steps):
            p = p @ flow
        squares += p**2 / len(attention.logits)
    return [math.sqrt(value) for value in squares]
