"""Scores of visual tokens, as float32 subgraphs beside a fused ``Attention`` node (which stays fused).

``A[h,i,j]`` is the post-softmax attention of query i on key j, rebuilt from q and k for just the rows that are needed.
Shapes: B batch, H heads, T tokens with CLS, N patches, D head width.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lmmprune.passes.anchors import AttentionLayer
from lmmprune.passes.builder import Builder

FLOAT = int(ir.DataType.FLOAT)


def probabilities(b: Builder, layer: AttentionLayer, queries: ir.Value) -> ir.Value:
    """Return the attention of some queries.

    Args:
        b: Tape.
        layer: Whose keys.
        queries: ``[B,H,R,D]``.

    Returns:
        ``[B,H,R,T]`` float32, rows sum to one.
    """
    # The scale goes to the queries: R*D products instead of R*T, and the order that TensorRT fuses.
    scaled = b.op("Mul", b.op("Cast", queries, to=FLOAT), np.float32(layer.scale))
    keys = b.op("Transpose", b.op("Cast", layer.k, to=FLOAT), perm=[0, 1, 3, 2])
    return b.op("Softmax", b.op("MatMul", scaled, keys), axis=-1)


def cls_attention(b: Builder, layer: AttentionLayer) -> ir.Value:
    """Return ``mean_h A[h,CLS,j]`` over patches, ``[B,N]``.

    Reference: Zhang et al., FasterVLM, 2024, arXiv 2412.01818.
    """
    row = b.op("Slice", layer.q, [0], [1], [2])
    attention = probabilities(b, layer, row)
    return _patches(b, b.op("ReduceMean", attention, [1, 2], keepdims=0), layer, has_cls=True)


def received_attention(b: Builder, layer: AttentionLayer, *, has_cls: bool) -> ir.Value:
    """Return ``mean_h sum_{i != j} A[h,i,j]``, what patch j receives from all other tokens, ``[B,N]``.

    Row sums of a softmax are constant, so the columns carry the signal.
    """
    batch, _, tokens, _ = layer.sizes
    mean = b.op("ReduceMean", probabilities(b, layer, layer.q), [1], keepdims=0)
    column = b.op("ReduceSum", mean, [1], keepdims=0)
    # The diagonal by its flat places: cheaper than a [T,T] mask stored in the graph.
    flat = b.op("Reshape", mean, [batch, tokens * tokens])
    itself = b.op("Gather", flat, np.arange(tokens, dtype=np.int64) * (tokens + 1), axis=1)
    return _patches(b, b.op("Sub", column, itself), layer, has_cls=has_cls)


def attention_from(b: Builder, layer: AttentionLayer, patches: ir.Value, count: int, *, has_cls: bool) -> ir.Value:
    """Return ``mean_h mean_{p in P} A[h,p,j]`` for a set P of patches, ``[B,N]``.

    Args:
        b: Tape.
        layer: Whose attention.
        patches: P, ``[B,count]`` int64 indices into the patches.
        count: Size of P.
        has_cls: Whether row 0 of the layer is CLS.
    """
    batch, heads, _, width = layer.sizes
    rows = b.op("Transpose", layer.q, perm=[0, 2, 1, 3])
    tokens = layer.sizes[2]
    flat = b.op("Reshape", rows, [batch, tokens, heads * width])
    chosen = gather_tokens(b, flat, b.op("Add", patches, np.int64(1)) if has_cls else patches, (batch, tokens, count))
    queries = b.op("Transpose", b.op("Reshape", chosen, [batch, count, heads, width]), perm=[0, 2, 1, 3])
    attention = probabilities(b, layer, queries)
    return _patches(b, b.op("ReduceMean", attention, [1, 2], keepdims=0), layer, has_cls=has_cls)


def exclude(b: Builder, scores: ir.Value, indices: ir.Value, tokens: int) -> ir.Value:
    """Return the scores with -inf at some indices ``[B,R]``; comparisons instead of a scatter.

    TensorRT's native scatter is undefined on duplicate targets, and comparisons fuse.
    """
    hit = b.op("Equal", b.op("Unsqueeze", indices, [2]), np.arange(tokens, dtype=np.int64).reshape(1, 1, -1))
    taken = b.op("ReduceMax", b.op("Cast", hit, to=FLOAT), [1], keepdims=0)
    return b.op("Where", b.op("Greater", taken, np.float32(0.5)), np.float32(-np.inf), scores)


def gather_tokens(b: Builder, table: ir.Value, indices: ir.Value, sizes: tuple[int, int, int]) -> ir.Value:
    """Return ``table[b, indices[b, r]]``.

    Args:
        b: Tape.
        table: ``[B,T,C]``.
        indices: ``[B,R]`` int64.
        sizes: B, T, R.

    Returns:
        ``[B,R,C]``. One Gather on the flattened table: GatherND and GatherElements are slower or missing elsewhere.
    """
    batch, tokens, count = sizes
    if batch == 1:
        return b.op("Gather", table, b.op("Reshape", indices, [count]), axis=1)
    offsets = np.arange(batch, dtype=np.int64).reshape(-1, 1) * tokens
    flat = b.op("Reshape", table, [batch * tokens, -1])
    return b.op("Gather", flat, b.op("Add", indices, offsets), axis=0)


def _patches(b: Builder, scores: ir.Value, layer: AttentionLayer, *, has_cls: bool) -> ir.Value:
    """Drop the CLS column of ``[B,T]``."""
    return b.op("Slice", scores, [1], [layer.sizes[2]], [1]) if has_cls else scores
