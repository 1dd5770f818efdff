"""What each token gives to CLS, read off the layer's own fused attention as one more column of its values."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.reduce.site_context import FLOAT, SiteContext

# Fused kernels are made for heads that are so many wide, or a multiple.
_STEP = 16


def attention_to_cls(at: SiteContext) -> ir.Value:
    """Return ``mean_h A[h,i,CLS]`` of the tokens i of the whole sequence, ``[images,T]`` float32.

    Before: ``Attention(q [B,H,T,D], k [B,H,T,D], v [B,H,T,D]) -> [B,H,T,D]``
    After: ``Attention(q, k, [v | e]) -> [B,H,T,D']``, e one in the row of CLS and zero elsewhere; the first D columns
    are what they were, column D is ``A[h,i,CLS]``. D' is the next multiple of 16 above D.

    A column of a softmax needs the sums of all rows of all heads: computed beside the attention it costs as much as
    half of the attention; in it, next to nothing, and the attention stays one fused node. Targets that take one width
    alone get wider queries and keys, too (``EqualHeadWidths``). The column has the graph's type, as the attention
    itself has.

    Raises:
        Refused: The encoder has no CLS token, or its attention is of another form.
    """
    node, (heads, _, width) = at.layer.node, at.layer.heads
    if not at.has_cls:
        raise Refused(f"{at.name}: this encoder has no CLS token")
    values, mixed, graph = node.inputs[2], node.outputs[0], node.graph
    if values is None or graph is None or any(output.uses() for output in node.outputs[1:]):
        raise Refused(f"{at.name}: '{node.name}' isn't an attention of queries, keys and values with one output")
    tokens, more = at.first + at.per_image, _STEP - width % _STEP
    users = list(mixed.uses())

    b, before = at.b, at.b.aside("widen")
    mark = np.zeros((1, 1, tokens, more), np.float32)
    mark[0, 0, 0, 0] = 1
    beside = before.op("Expand", mark, [at.images, _heads(values), tokens, more])
    node.replace_input_with(2, before.op("Concat", values, beside, axis=3))
    before.insert_before(graph, node)
    mixed.shape = ir.Shape([at.images, heads, tokens, width + more])

    behind = b.aside("narrow")
    own, beyond = behind.ops("Split", 2, mixed, [width, more], axis=3)
    for user, index in users:
        user.replace_input_with(index, own)
    behind.insert_after(graph, node)

    column = b.op("Cast", b.op("Slice", beyond, [0], [1], [3]), to=FLOAT)
    return b.op("ReduceMean", column, [1, 3], keepdims=0)


def _heads(value: ir.Value) -> int:
    heads = None if value.shape is None else value.shape[1]
    if not isinstance(heads, int):
        raise Refused(f"'{value.name}' has shape {value.shape}: expected a number of heads on axis 1")
    return heads
