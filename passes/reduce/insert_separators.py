"""Set the tokens that are no patches (newlines) between the patches that stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.names import IMAGE_FEATURES
from lmmprune.passes.find.anchors import VisionAnchors
from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.graph.shapes import static_shape
from lmmprune.passes.reduce.site_context import FLOAT, INT64, gather_tokens


@dataclass(frozen=True, kw_only=True)
class Separated:
    """The tokens that the decoder gets of a pruned picture.

    Attributes:
        places: ``[B,K+S]`` int64, ascending, which of the unpruned picture's tokens each is; -1 (none) comes first.
        rows: ``[B,K+S]`` int64, where each comes from: a row of the K features, or K for a separator.
    """

    places: ir.Value
    rows: ir.Value


def insert_separators(b: Builder, anchors: VisionAnchors, kept: ir.Value, keep: int) -> Separated:
    """Write the order of the kept patches and all S separators: that of the unpruned picture.

    [our reading] Newlines aren't candidates: they mark the rows of the picture for the decoder, and a row without its
    patches is still a row. A method's own order of the tokens gives way to the picture's.

    Args:
        b: Tape.
        anchors: Of the unpruned graph.
        kept: ``[B,K]`` int64, patches in the order of the features; -1: none.
        keep: K.
    """
    batch = static_shape(anchors.patches)[0]
    place = np.empty(anchors.tokens, np.int64)
    patches = anchors.lines < anchors.tokens
    place[anchors.lines[patches]] = np.flatnonzero(patches)
    inside = b.op("Gather", b.constant(place), b.op("Max", kept, b.constant([0])), axis=0)
    own = b.op("Where", b.op("Less", kept, b.constant([0])), b.constant([-1]), inside)
    separators = np.tile(np.flatnonzero(~patches), (batch, 1))
    both = b.op("Concat", own, b.constant(separators), axis=1)
    # On float32, exact below 2**24, because TensorRT 10.3's TopK takes no int64.
    values, rows = b.ops("TopK", 2, b.op("Cast", both, to=FLOAT), [keep + anchors.separators], axis=-1, largest=0)
    return Separated(places=b.op("Cast", values, to=INT64), rows=b.op("Min", rows, b.constant([keep])))


def separated_features(b: Builder, anchors: VisionAnchors, separated: Separated, keep: int) -> ir.Value:
    """Write ``image_features [B,K+S,C']`` from the table of features and separator that the graph ends with."""
    node = anchors.separated.producer()
    assert node is not None
    assert node.inputs[0] is not None
    batch = static_shape(anchors.patches)[0]
    # The last row of the table is the separator, after the K features.
    return gather_tokens(b, node.inputs[0], separated.rows, (batch, keep + 1, keep + anchors.separators), stream=True)


def replace_features(model: ir.Model, old: ir.Value, new: ir.Value) -> ir.Value:
    """Let the graph's output ``image_features`` be the shorter value; return it."""
    old.name = "image_features.all"
    model.graph.outputs[model.graph.outputs.index(old)] = new
    new.name = IMAGE_FEATURES
    new.type = old.type
    return new
