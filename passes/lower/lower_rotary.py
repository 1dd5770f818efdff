"""Write RotaryEmbedding as primitives, for parsers that don't know it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.lower.lower_node import Lowering, LowerOperator, attribute, nodes_of, number, rank

_END = int(np.iinfo(np.int64).max)

# (cos or sin cache, positions, axis of the heads) -> the angles with an axis for the heads, written once.
_Angles = dict[tuple[ir.Value, ir.Value | None, int], ir.Value]


@dataclass(frozen=True, kw_only=True)
class LowerRotary(LowerOperator):
    """Replace ``RotaryEmbedding`` by splits, products and a Concat.

    Before: ``RotaryEmbedding(x [B,H,S,D], cos [B,S,R/2], sin [B,S,R/2])``
    After: ``a, b, rest = Split(x, [R/2, R/2, D-R])``; ``Concat(a cos - b sin, b cos + a sin, rest)``. Interleaved: a
    and b are the even and odd places of the first R. ``x [B,S,H*D]`` is split into heads, and caches ``[P,R/2]`` are
    gathered at ``position_ids``. Every pair of angles gets its axis for the heads once, for all layers.

    Reference: Su et al. 2021, arXiv 2104.09864; ONNX operator RotaryEmbedding-23.
    """

    op_type: ClassVar[str] = "RotaryEmbedding"

    def requires(self, model: ir.Model) -> None:
        """Check the ranks, the widths, and that caches and positions go together."""
        for node in nodes_of(model, "RotaryEmbedding"):
            new = Lowering(node)
            dims = rank(new.input(0), expected=(3, 4))
            if dims == 3 and not attribute(node, "num_heads", 0):
                raise Refused(f"'{node.name}' turns [B,S,H*D] but doesn't say num_heads: add the attribute")
            width, turned = _widths(new)
            if turned % 2 or turned > width:
                raise Refused(
                    f"'{node.name}' turns {turned} of {width} dimensions, expected an even number of at most D"
                )
            cache, positions = rank(new.input(1), expected=(2, 3)), new.given(3)
            if (cache == 2) != (positions is not None):
                raise Refused(
                    f"'{node.name}' has cos of rank {cache} with{'' if positions is not None else 'out'} position_ids:"
                    " expected [P,R/2] with, or [B,S,R/2] without them"
                )

    def rewriter(self) -> Callable[[ir.Graph, Lowering], None]:
        """Return what replaces one node."""
        return functools.partial(_lower, angles=_Angles())


def _widths(new: Lowering) -> tuple[int, int]:
    """Return D and R."""
    x, heads = new.input(0), attribute(new.node, "num_heads", 0)
    width = number(x, -1) // (heads if rank(x, expected=(3, 4)) == 3 else 1)
    return width, attribute(new.node, "rotary_embedding_dim", 0) or width


def _lower(graph: ir.Graph, new: Lowering, angles: _Angles) -> None:
    b, x = new.b, new.input(0)
    (width, turned), flat = _widths(new), rank(x, expected=(3, 4)) == 3
    if flat:
        x = b.op("Reshape", x, [0, 0, attribute(new.node, "num_heads", 0), width])
    cos, sin = (_angles(new, index, 2 if flat else 1, angles) for index in (1, 2))
    half, rest = turned // 2, None
    if attribute(new.node, "interleaved", 0):
        if turned < width:
            x, rest = b.ops("Split", 2, x, [turned, width - turned], axis=-1)
        first, second = (b.op("Slice", x, [start], [_END], [-1], [2]) for start in (0, 1))
    else:
        sizes = [half, half, *([width - turned] if turned < width else [])]
        first, second, *others = b.ops("Split", len(sizes), x, sizes, axis=-1)
        rest = others[0] if others else None
    real = b.op("Sub", b.op("Mul", first, cos), b.op("Mul", second, sin))
    imaginary = b.op("Add", b.op("Mul", second, cos), b.op("Mul", first, sin))
    if attribute(new.node, "interleaved", 0):
        pairs = b.op("Concat", *(b.op("Unsqueeze", part, [-1]) for part in (real, imaginary)), axis=-1)
        parts = [b.op("Reshape", pairs, [0, 0, 0, turned])]
    else:
        parts = [real, imaginary]
    parts += [rest] if rest is not None else []
    result = b.op("Concat", *parts, axis=-1) if len(parts) > 1 else parts[0]
    new.replace(graph, {0: b.op("Reshape", result, [0, 0, -1]) if flat else result})


def _angles(new: Lowering, index: int, heads_axis: int, done: _Angles) -> ir.Value:
    """Return the cosines or sines of each token, with an axis of one for the heads."""
    cache, positions = new.input(index), new.given(3)
    key = (cache, positions, heads_axis)
    if key not in done:
        found = cache if positions is None else new.b.op("Gather", cache, positions, axis=0)
        done[key] = new.b.op("Unsqueeze", found, [heads_axis])
    return done[key]
