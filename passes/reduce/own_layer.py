"""Score by the layer that a cut in the decoder is in front of: its q and k, computed from what enters it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir

from lmmprune.passes.graph.builder import Builder
from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.reduce.site_context import END, SiteContext


def by_next_layer(at: SiteContext) -> SiteContext:
    """Return the same site, seen by the layer behind the cut.

    Before: ``x [1,T,C] -> cut -> norm, projections, rotation -> q [1,H,T',D], k [1,Hk,T',D] -> Attention``
    After: beside it, in front of the cut, ``q [1,H,1,D]`` of the last row of x alone and ``k [1,Hk,T,D]`` of all rows

    Only the nodes between the stream and q or k are written a second time, on the same weights; the attention itself
    isn't, and stays fused. They have the graph's own type, as the layer's; scores made of them are float32. What the
    context returns has one query, the last: ask it for the attention of ``last`` only.

    Raises:
        Refused: There is no layer behind the site, or q and k don't depend on the stream alone.
    """
    if at.ahead is None:
        raise Refused(f"{at.name}: no decoder layer is in front of this site's cut: use an llm_input site")
    b, layer = at.b, at.ahead
    last = {value: b.stream("Slice", value, [-1], [END], [axis]) for value, axis in at.carried.items()}
    query = written_again(b, layer.q, last)
    keys = written_again(b, layer.k, {at.stream: at.stream})
    return dataclasses.replace(at, layer=dataclasses.replace(layer, q=query, k=keys))


def written_again(b: Builder, value: ir.Value, sources: Mapping[ir.Value, ir.Value]) -> ir.Value:
    """Write a second time what lies between some values and one that is made of them, and return the latter.

    Args:
        b: Tape.
        value: What to write again.
        sources: Values that it depends on -> what the copies read in their place (may be the same).

    Raises:
        Refused: It depends on none of them.
    """
    found: dict[ir.Value, ir.Value | None] = dict(sources)

    def copy(wanted: ir.Value) -> ir.Value | None:
        """Return the copy of a value, None if it depends on no source."""
        if wanted in found:
            return found[wanted]
        node = wanted.producer()
        inputs = [] if node is None else [None if entry is None else copy(entry) for entry in node.inputs]
        if node is None or all(entry is None for entry in inputs):
            found[wanted] = None
            return None
        read = [mine if mine is not None else theirs for mine, theirs in zip(inputs, node.inputs, strict=True)]
        for theirs, mine in zip(node.outputs, b.again(node, read), strict=True):
            found[theirs] = mine
        return found[wanted]

    made = copy(value)
    if made is None:
        raise Refused(f"'{value.name}' doesn't depend on the stream in front of its layer: expected q or k of a layer")
    return made
