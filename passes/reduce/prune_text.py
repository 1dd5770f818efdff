"""Which tokens of the question go on behind a cut in the decoder: all of them, or all but the least related ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.reduce.filters import text_attention
from lmmprune.passes.reduce.rules import ascending
from lmmprune.passes.reduce.site_context import FLOAT, INT64, SiteContext

# Of the question: its first token borders on the picture, its last one speaks.
PROTECTED = 2


def surviving_text(
    at: SiteContext, length: ir.Value, ids: ir.Value, *, begin: int, kept: int, drop: int, special: Sequence[int]
) -> ir.Value:
    """Return the places of the tokens behind the image that stay, ``[tail]`` int64, ascending.

    In a run without the image these are all behind the first ``kept`` ones: none in a decode step.

    Args:
        at: A site in the decoder.
        length: ``[1]`` int64, tokens of the sequence that arrives.
        ids: ``[1,T]`` int64, the same tokens.
        begin: Place of the first token behind the image.
        kept: Place of the same token behind the cut.
        drop: How many go: those with the smallest ``mean_h mean_{t text} A[h,t,j]``.
        special: Ids that never go; neither do the first and the last token.
    """
    b = at.b
    assert at.alive is not None
    scalar, alive = b.op("Squeeze", length, [0]), b.op("Squeeze", at.alive, [0])
    gone = b.op("Where", alive, b.constant(begin + drop, np.int64), b.constant(kept, np.int64))
    slots = _range(b, b.constant(0, np.int64), b.op("Max", b.op("Sub", scalar, gone), b.constant(0, np.int64)))
    first = b.op("Where", alive, b.constant(begin, np.int64), b.constant(kept, np.int64))
    if not drop:
        return b.op("Add", slots, first)
    dropped = _dropped(at, ids, drop, special)
    # The i-th survivor stands i places in, plus one for each dropped token d_m (ascending) with d_m - m <= i.
    shifts = b.op("Sub", dropped, np.arange(drop, dtype=np.int64)[None])
    earlier = b.op("Cast", b.op("LessOrEqual", shifts, b.op("Unsqueeze", slots, [1])), to=FLOAT)
    skipped = b.op("Cast", b.op("ReduceSum", earlier, [1], keepdims=0), to=INT64)
    return b.op("Add", b.op("Add", slots, b.op("Where", at.alive, skipped, b.constant([0]))), first)


def _dropped(at: SiteContext, ids: ir.Value, count: int, special: Sequence[int]) -> ir.Value:
    """Return the places in the tail of the tokens that go, ``[1,count]``, ascending."""
    b = at.b
    scores = at.rows(text_attention(at), "text", 1)
    mine = b.op("Unsqueeze", at.rows(ids, "text", 1), [2])
    named = b.op("Cast", b.op("Equal", mine, np.array(sorted(special), np.int64)), to=FLOAT)
    protected = b.op("Greater", b.op("ReduceMax", named, [2], keepdims=0), np.float32(0.5))
    size = b.op("Shape", scores, start=1, end=2)
    place = _range(b, b.constant(0, np.int64), b.op("Squeeze", size, [0]))
    edge = b.op("Or", b.op("Equal", place, b.constant(0, np.int64)), b.op("Equal", place, b.op("Sub", size, [1])))
    scores = b.op("Where", b.op("Or", protected, edge), np.float32(np.inf), scores)
    # A decode step has fewer text tokens than go: more candidates that are never looked at.
    scores = b.op("Concat", scores, np.full((1, count), np.inf, np.float32), axis=1)
    return ascending(b, b.ops("TopK", 2, scores, [count], axis=-1, largest=0)[1], count)


def _range(b: Builder, start: ir.Value, stop: ir.Value) -> ir.Value:
    return b.op("Range", start, stop, b.constant(1, np.int64))
