"""FiCoCo's redundancy in an encoder: how little CLS asks for a patch, and what the patch gives to the others."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lmmprune.passes.reduce.cls_column import attention_to_cls
from lmmprune.passes.reduce.filters import cls_attention, normalized
from lmmprune.passes.reduce.site_context import SiteContext


def attention_redundancy(at: SiteContext, *, share: float) -> ir.Value:
    """Return ``share * mean_{j patch} A_ij - (1 - share) * A[CLS,i]``, A the head mean of the layer's attention.

    Rows of A sum to one, so the first mean is ``(1 - A[i,CLS]) / n``. Without CLS it is ``1 / n``, and
    ``-cos(mean key, key_i)`` takes the place of what CLS gives.

    Reference: Han et al., FiCoCo, 2024, arXiv 2411.17686.
    """
    b = at.b
    if not at.has_cls:
        central = b.op("Mul", _centrality(at), np.float32(1 - share))
        return b.op("Add", central, np.float32(share / at.tokens))
    to_patches = b.op("Sub", np.float32(1), at.visual_scores(attention_to_cls(at)))
    within = b.op("Mul", to_patches, np.float32(share / at.tokens))
    return b.op("Sub", within, b.op("Mul", cls_attention(at), np.float32(1 - share)))


def logit_redundancy(at: SiteContext, *, share: float) -> ir.Value:
    """Return ``share * u - (1 - share) * v`` on head-mean logits L before the softmax, u and v of unit length.

    ``u_i = mean_{j patch} L_ij``, ``v_i = L[CLS,i]``, without CLS ``-cos(mean key, key_i)``.

    Reference: the released code of Han et al., FiCoCo, 2024, arXiv 2411.17686 (there with shares of 0.65 and 0.35).
    """
    b = at.b
    keys = at.flat_keys("visual")
    # The mean of products is the product with the mean: n products of width Hk*D instead of n*n.
    mean = b.op("Transpose", b.op("ReduceMean", keys, [1], keepdims=1), perm=[0, 2, 1])
    within = b.op("Squeeze", b.op("MatMul", at.flat_queries("visual"), mean), [2])
    if at.has_cls:
        given = b.op("MatMul", at.flat_queries("cls"), b.op("Transpose", keys, perm=[0, 2, 1]))
        task = b.op("Squeeze", given, [1])
    else:
        task = b.op("Neg", _centrality(at))
    return b.op(
        "Sub",
        b.op("Mul", _unit_length(at, within), np.float32(share)),
        b.op("Mul", _unit_length(at, task), np.float32(1 - share)),
    )


def _centrality(at: SiteContext) -> ir.Value:
    """Return ``cos(mean key, key_i)`` of head-mean keys, ``[B,n]``."""
    b = at.b
    means = at.mean_keys()
    centre = normalized(at, b.op("ReduceMean", means, [1], keepdims=1))
    return b.op("Squeeze", b.op("MatMul", normalized(at, means), b.op("Transpose", centre, perm=[0, 2, 1])), [2])


def _unit_length(at: SiteContext, scores: ir.Value) -> ir.Value:
    return at.b.op("Div", scores, at.b.op("ReduceL2", scores, [1], keepdims=1))


def local_penalty(at: SiteContext, score: ir.Value, *, window: int, coefficient: float) -> ir.Value:
    """Make the most redundant token of each window of the original grid more redundant, the first one on ties."""
    b = at.b
    rows, columns = at.grid
    across = -(-columns // window)
    windows = (np.arange(rows)[:, None] // window) * across + np.arange(columns)[None] // window
    count = int(windows[-1, -1]) + 1
    place = b.op("Gather", windows.astype(np.int64).reshape(-1), at.origin, axis=0)
    member = b.op("Equal", b.op("Unsqueeze", place, [1]), np.arange(count, dtype=np.int64).reshape(1, -1, 1))
    inside = b.op("Where", member, b.op("Unsqueeze", score, [1]), np.float32(-np.inf))
    most = b.op("ArgMax", inside, axis=2, keepdims=1)
    mine = b.op("Reshape", at.gather_rows(most, place, count, at.tokens), [at.batch, at.tokens])
    first = b.op("Equal", mine, np.arange(at.tokens, dtype=np.int64).reshape(1, -1))
    factor = b.op("Where", b.op("Greater", score, np.float32(0)), np.float32(coefficient), np.float32(1 / coefficient))
    return b.op("Where", first, b.op("Mul", score, factor), score)
