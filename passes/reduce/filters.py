"""Filters: how much each visual token matters, or how redundant it is; ``[B,n]`` float32 subgraphs.

They read q and k beside a fused ``Attention`` node (which stays fused) and rebuild only the rows that they need.
``A[h,i,j]`` is the post-softmax attention of query i on key j. Shapes as in ``at``.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lmmprune.passes.reduce.site_context import END, FLOAT, SiteContext, reads_text


def cls_attention(at: SiteContext) -> ir.Value:
    """Return ``mean_h A[h,CLS,j]``, CLS that of the patch's own tile.

    Reference: Zhang et al., FasterVLM, 2024, arXiv 2412.01818.
    """
    attention = at.b.op("ReduceMean", at.attention("cls"), [*at.head_axes, at.head_axes[-1] + 1], keepdims=0)
    return at.visual_scores(attention)


def received_attention(at: SiteContext) -> ir.Value:
    """Return ``mean_h sum_{i != j} A[h,i,j]``, what patch j receives from all other rows of the sequence.

    Row sums of a softmax are constant, so the columns carry the signal.
    """
    b, (heads, key_heads, _) = at.b, at.layer.heads
    tokens = at.first + at.per_image
    attention = at.attention("all")
    # Sums over rows as a product with ones: one pass over the matrices, where a strided reduction takes several.
    columns = b.op("MatMul", np.ones((1, tokens), np.float32), attention)
    column = b.op("ReduceMean", columns, [*at.head_axes, at.head_axes[-1] + 1], keepdims=0)
    # The diagonal by its flat places: cheaper than a [T,T] mask stored in the graph.
    lead = [at.images, key_heads] if heads == key_heads else [at.images, key_heads, heads // key_heads]
    flat = b.op("Reshape", attention, [*lead, tokens * tokens])
    diagonal = b.op("Gather", flat, np.arange(tokens, dtype=np.int64) * (tokens + 1), axis=len(lead))
    itself = b.op("ReduceMean", diagonal, at.head_axes, keepdims=0)
    return at.visual_scores(b.op("Sub", column, itself))


def total_attention(at: SiteContext) -> ir.Value:
    """Return ``sum_h sum_i A[h,i,j]``, i over all tokens and j itself.

    Reference: Yang et al., VisionZip, 2024, arXiv 2412.04467, its rule for encoders without CLS.
    """
    attention = at.attention("all")
    return at.visual_scores(at.b.op("ReduceSum", attention, [*at.head_axes, at.head_axes[-1] + 1], keepdims=0))


def attention_from(at: SiteContext, tokens: ir.Value, count: int) -> ir.Value:
    """Return ``mean_h mean_{p in P} A[h,p,j]`` for the patches P of some tokens; one of another tile gives j nothing.

    Args:
        at: An encoder's site.
        tokens: ``[B,count]`` int64 places among the n tokens.
        count: How many.
    """
    if at.tiles > 1:
        return _attention_within_tiles(at, tokens, count)
    b, (heads, _, width) = at.b, at.layer.heads
    rows = b.op("Transpose", at.queries("patches"), perm=[0, 2, 1, 3])
    flat = b.op("Reshape", rows, [at.batch, at.patches, heads * width])
    patches, count = at.patches_of(tokens, count), count * at.patches // at.tokens
    chosen = at.gather_rows(flat, patches, at.patches, count)
    queries = b.op("Transpose", b.op("Reshape", chosen, [at.batch, count, heads, width]), perm=[0, 2, 1, 3])
    attention = at.attention_of(queries)
    return at.rows(b.op("ReduceMean", attention, [*at.head_axes, at.head_axes[-1] + 1], keepdims=0), "visual", 1)


def _attention_within_tiles(at: SiteContext, tokens: ir.Value, count: int) -> ir.Value:
    """Write ``attention_from`` as ``sum_p w_p A[h,p,j]``, w_p = 1 / |P| for the patches of P, else 0.

    How many of a tile's patches are in P differs from picture to picture, so they can't be gathered tile by tile.
    """
    b = at.b
    assert at.members is not None
    # Which token each patch is in, tile by tile.
    token = np.empty(at.patches, np.int64)
    token[at.members] = np.arange(at.tokens).reshape(-1, 1)
    hit = b.op("Equal", b.op("Unsqueeze", tokens, [2]), token.reshape(1, 1, -1))
    chosen = b.op("ReduceMax", b.op("Cast", hit, to=FLOAT), [1], keepdims=0)
    shares = b.op("Mul", chosen, np.float32(1 / (count * at.group)))
    weights = b.op("Reshape", shares, [at.images, 1, 1, at.per_image])
    if len(at.head_axes) == 2:
        weights = b.op("Unsqueeze", weights, [1])
    given = b.op("MatMul", weights, at.attention("patches"))
    return at.visual_scores(b.op("ReduceMean", given, [*at.head_axes, at.head_axes[-1] + 1], keepdims=0))


def last_query(at: SiteContext) -> ir.Value:
    """Return ``mean_h A[h,last,j]``, the attention of the prompt's last token.

    Reference: Chen et al., FastV, 2024, arXiv 2403.06764.
    """
    attention = at.b.op("ReduceMean", at.attention("last"), [*at.head_axes, at.head_axes[-1] + 1], keepdims=0)
    return at.rows(attention, "visual", 1)


def text_attention(at: SiteContext) -> ir.Value:
    """Return ``mean_h mean_{t text} A[h,t,j]`` for the tokens j of the whole sequence, ``[1,T]``."""
    return at.b.op("ReduceMean", at.attention("text"), [*at.head_axes, at.head_axes[-1] + 1], keepdims=0)


def rated_attention(at: SiteContext) -> ir.Value:
    """Return ``mean_{t rater} mean_h A[h,t,j]``; raters are the text tokens that resemble the picture.

    With ``m_t = mean_v softmax_t(e_v . e_t)`` of the embeddings, raters are the t with m_t above the mean of m.

    Reference: Zhang et al., SparseVLM, 2024, arXiv 2410.04417.
    """
    b = at.b
    assert at.embeds is not None
    embeds, begin, end = at.embeds
    images = embedded_rows(at, embeds, begin, end)
    text = embedded_rows(at, embeds, end, None)
    similarity = b.op("MatMul", images, b.op("Transpose", text, perm=[0, 2, 1]))
    likeness = b.op("ReduceMean", b.op("Softmax", similarity, axis=2), [1], keepdims=0)
    chosen = b.op("Greater", likeness, b.op("ReduceMean", likeness, [1], keepdims=1))
    raters = b.op("Cast", chosen, to=FLOAT)
    count = b.op("ReduceSum", raters, [1], keepdims=1)
    # A text of one token is its own average: nobody is above it, and all rate.
    none = b.op("Less", count, np.float32(0.5))
    weights = b.op("Where", none, np.float32(1), raters)
    weights = b.op("Div", weights, b.op("ReduceSum", weights, [1], keepdims=1))
    attention = b.op("ReduceMean", at.attention("text"), at.head_axes, keepdims=0)
    rated = b.op("MatMul", b.op("Unsqueeze", weights, [1]), attention)
    return at.rows(b.op("Squeeze", rated, [1]), "visual", 1)


def embedded_rows(at: SiteContext, value: ir.Value, begin: int, end: int | None) -> ir.Value:
    """Return rows ``begin..end`` of ``value [B,T,C]`` in float32; in a decode step its last row."""
    b = at.b
    last = b.op("Sub", b.op("Shape", value, start=1, end=2), b.constant([1]))
    stop = np.iinfo(np.int64).max if end is None else end
    rows = b.op("Slice", value, b.op("Min", b.constant([begin]), last), [stop], [1])
    return b.op("Cast", reads_text(rows) if end is None and at.decodes else rows, to=FLOAT)


def random_walk(at: SiteContext, *, temperature: float, steps: int) -> ir.Value:
    """Return ``sqrt(mean_h p_j^2)`` after some steps of PageRank over the visual tokens.

    ``M[h] = softmax_j(L[h,i,j] / temperature)`` without the causal mask, ``p0 = 1/n``, ``p <- p M``.

    Reference: Zhong et al., AIM, 2024, arXiv 2412.03248.
    """
    b = at.b
    logits = at.logits(at.queries("visual"), at.keys("visual"))
    walk = b.op("Softmax", b.op("Mul", logits, np.float32(1 / temperature)), axis=-1)
    rows = -2
    # The first step from the even start is the mean over the rows.
    p = b.op("ReduceMean", walk, [rows], keepdims=1)
    for _ in range(steps - 1):
        p = b.op("MatMul", p, walk)
    squares = b.op("ReduceMean", b.op("Mul", p, p), [*at.head_axes, at.head_axes[-1] + 1], keepdims=0)
    return b.op("Sqrt", squares)


def normalized(at: SiteContext, value: ir.Value) -> ir.Value:
    """Return ``value [..., C]`` in float32 with rows of length one."""
    b = at.b
    value = b.op("Cast", value, to=FLOAT)
    length = b.op("ReduceL2", value, [-1], keepdims=1)
    return b.op("Div", value, b.op("Max", length, np.float32(1e-12)))


def decoder_redundancy(at: SiteContext, *, share: float) -> ir.Value:
    """Return FiCoCo's redundancy in a decoder.

    ``s_i = share * mean_{j visual} A_ij - (1 - share) * mean_{k text} A_ki``, A the causal head mean.

    Reference: Han et al., FiCoCo, 2024, arXiv 2411.17686.
    """
    b = at.b
    visual, text = visual_and_text_attention(at)
    within = b.op("ReduceMean", visual, [2], keepdims=0)
    asked = b.op("ReduceMean", text, [1], keepdims=0)
    return b.op("Sub", b.op("Mul", within, np.float32(share)), b.op("Mul", asked, np.float32(1 - share)))


def visual_and_text_attention(at: SiteContext) -> tuple[ir.Value, ir.Value]:
    """Return ``mean_h A`` on the visual tokens, of the visual queries ``[1,n,n]`` and of the text's ``[1,t,n]``.

    Both are rows of one product and one softmax, which is written once for a site, however many ask for it.
    """
    b = at.b
    if "attention" not in at.shared:
        mean = b.op("ReduceMean", at.attention("onward"), at.head_axes, keepdims=0)
        both = at.rows(mean, "visual", 2)
        # A decode step has one row, which stands for either.
        last = b.op("Sub", b.op("Shape", both, start=1, end=2), b.constant([1]))
        text = b.op("Slice", both, b.op("Min", b.constant([at.tokens]), last), [END], [1])
        at.shared["attention"] = b.op("Slice", both, [0], [at.tokens], [1]), text
    visual, text = at.shared["attention"]
    return visual, text


def exclude(at: SiteContext, scores: ir.Value, indices: ir.Value) -> ir.Value:
    """Return the scores ``[B,n]`` with -inf at some places ``[B,R]``; comparisons instead of a scatter.

    TensorRT's native scatter is undefined on duplicate targets, and comparisons fuse.
    """
    b = at.b
    hit = b.op("Equal", b.op("Unsqueeze", indices, [2]), np.arange(at.tokens, dtype=np.int64).reshape(1, 1, -1))
    taken = b.op("ReduceMax", b.op("Cast", hit, to=FLOAT), [1], keepdims=0)
    return b.op("Where", b.op("Greater", taken, np.float32(0.5)), np.float32(-np.inf), scores)


def constant_places(at: SiteContext, places: np.ndarray) -> ir.Value:
    """Return the same places for every picture, ``[B,K]`` int64."""
    return at.b.constant(np.broadcast_to(places.astype(np.int64), (at.batch, len(places))).copy())
