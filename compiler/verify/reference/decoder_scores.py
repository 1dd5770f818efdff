"""Scores of visual tokens before a decoder layer, from the attention of the layer before it."""

from __future__ import annotations

import math

import numpy as np

from lmmprune.compiler.verify.reference.chooser import Chooser
from lmmprune.compiler.verify.reference.layer_attention import LayerAttention


def row_score(layer: LayerAttention, rows: list[int], columns: list[int]) -> list[float]:
    """Mean over the heads and the query rows of the attention on each of the columns; rows of the prompt."""
    attention = layer.mean_attention
    return [sum(float(attention[t, j]) for t in rows) / len(rows) for j in columns]


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
    squares = [0.0] * n
    for logits in attention.logits:
        flow = []
        for i in visual:
            row = [float(logits[i, j]) / temperature for j in visual]
            raised = [math.exp(value - max(row)) for value in row]
            flow.append([value / sum(raised) for value in raised])
        p = [1 / n] * n
        for _ in range(steps):
            p = [sum(p[i] * flow[i][j] for i in range(n)) for j in range(n)]
        for j in range(n):
            squares[j] += p[j] ** 2 / len(attention.logits)
    return [math.sqrt(value) for value in squares]
