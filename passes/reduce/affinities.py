"""Correlations: how much each dropped token has to do with each kept one, ``[B,n-K,K]`` float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lmmprune.passes.reduce.filters import normalized, visual_and_text_attention
from lmmprune.passes.reduce.site_context import SiteContext


def attention_affinity(at: SiteContext, dropped: ir.Value, kept: ir.Value, keep: int) -> ir.Value:
    """Return ``A_ij``, the head mean of an encoder layer's attention.

    Reference: Han et al., FiCoCo, 2024, arXiv 2411.17686.
    """
    b, (heads, _, width), count = at.b, at.layer.heads, at.tokens - keep
    # Only the rows of the dropped ones are computed.
    rows = b.op("Reshape", b.op("Transpose", at.queries("visual"), perm=[0, 2, 1, 3]), [0, 0, heads * width])
    chosen = b.op("Reshape", at.gather(rows, dropped, count), [at.batch, count, heads, width])
    attention = at.attention_of(b.op("Transpose", chosen, perm=[0, 2, 1, 3]))
    columns = b.op("Transpose", b.op("ReduceMean", attention, at.head_axes, keepdims=0), perm=[0, 2, 1])
    # Columns are picked as rows of the transpose, then turned back: [B,T,S] -> [B,K,S] -> [B,S,K].
    return b.op("Transpose", at.gather(at.rows(columns, "visual", 1), kept, keep), perm=[0, 2, 1])


def logit_affinity(at: SiteContext, dropped: ir.Value, kept: ir.Value, keep: int) -> ir.Value:
    """Return the row-softmax of the head-mean logits of dropped queries on kept keys.

    Reference: Han et al., FiCoCo, 2024, arXiv 2411.17686 (beside ``logit_redundancy``).
    """
    b = at.b
    queries = at.gather(at.flat_queries("visual"), dropped, at.tokens - keep)
    keys = at.gather(at.flat_keys("visual"), kept, keep)
    return b.op("Softmax", b.op("MatMul", queries, b.op("Transpose", keys, perm=[0, 2, 1])), axis=-1)


def decoder_affinity(at: SiteContext, dropped: ir.Value, kept: ir.Value, keep: int, *, direct: float) -> ir.Value:
    """Return ``direct * A_ij + (1 - direct) * mean_{k text} A_ki A_kj``, A the causal head mean.

    Reference: Han et al., FiCoCo, 2024, arXiv 2411.17686.
    """
    b = at.b
    visual, asked = visual_and_text_attention(at)
    text = b.op("Transpose", asked, perm=[0, 2, 1])
    text_dropped = at.gather(text, dropped, at.tokens - keep)
    text_kept = at.gather(text, kept, keep)
    count = b.op("Cast", b.op("Shape", text, start=2, end=3), to=int(ir.DataType.FLOAT))
    through = b.op("Div", b.op("MatMul", text_dropped, b.op("Transpose", text_kept, perm=[0, 2, 1])), count)
    rows = b.op("Transpose", at.gather(visual, dropped, at.tokens - keep), perm=[0, 2, 1])
    # Columns are picked as rows of the transpose, then turned back: [B,n,S] -> [B,K,S] -> [B,S,K].
    pairs = b.op("Transpose", at.gather(rows, kept, keep), perm=[0, 2, 1])
    return b.op("Add", b.op("Mul", pairs, np.float32(direct)), b.op("Mul", through, np.float32(1 - direct)))


def key_similarity(at: SiteContext, some: ir.Value, others: ir.Value, count: int, rows: int) -> ir.Value:
    """Return the cosine of the head-mean keys of ``rows`` tokens and ``count`` others, ``[B,rows,count]``."""
    b = at.b
    keys = normalized(at, at.mean_keys())
    mine, theirs = at.gather(keys, some, rows), at.gather(keys, others, count)
    return b.op("MatMul", mine, b.op("Transpose", theirs, perm=[0, 2, 1]))
