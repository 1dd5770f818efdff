"""What a rule knows of tokens where no attention tells: their vectors, and those of the text.

In a decode step there is one visual token and one token of text, and what is written here runs on these alone: nothing
in it grows with the picture.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lmmprune.passes.reduce.site_context import FLOAT, SiteContext


def text_rows(at: SiteContext) -> ir.Value:
    """Return the tokens behind the image as they arrive at the site, ``[B,M,C]`` float32."""
    return at.b.op("Cast", at.rows(at.stream, "text", 1), to=FLOAT)


def other_rows(at: SiteContext) -> ir.Value:
    """Return all tokens but the visual ones as they arrive at the site, ``[B,M,C]`` float32."""
    if at.first == 0:
        return text_rows(at)
    before = at.b.op("Slice", at.stream, [0], [at.first], [1])
    return at.b.op("Concat", at.b.op("Cast", before, to=FLOAT), text_rows(at), axis=1)


def products(at: SiteContext, some: ir.Value, others: ir.Value) -> ir.Value:
    """Return all products ``[B,R,S]`` of rows ``[B,R,C]`` and ``[B,S,C]``."""
    return at.b.op("MatMul", some, at.b.op("Transpose", others, perm=[0, 2, 1]))


def places(at: SiteContext) -> ir.Value:
    """Return the places of the visual tokens that are there, ``[1,1,n]`` int64: 0..n-1, in a decode step 0."""
    b = at.b
    every = b.constant(np.arange(at.tokens, dtype=np.int64).reshape(1, 1, -1))
    return b.op("Slice", every, [0], b.op("Shape", at.visual, start=1, end=2), [2]) if at.decodes else every
