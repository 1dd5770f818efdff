"""What code from outside returned must have the shape that it promised: known only when shapes have been inferred."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from lmmprune.passes.graph.refusals import Broken
from lmmprune.passes.reduce.site_context import SiteContext

_EXPECTED = "lmmprune.expected"


def expect_returned(
    value: ir.Value,
    shape: Sequence[int],
    what: str,
    at: SiteContext,
    dtype: ir.DataType = ir.DataType.FLOAT,
) -> ir.Value:
    """Note what a value must be, for ``check_returned``; return the value.

    Args:
        value: What was returned.
        shape: Its dimensions.
        what: Who returned it.
        at: The site; in the decoder the shape is that of the prefill.
        dtype: Its type.
    """
    value.meta[_EXPECTED] = (what, at.name, list(shape), dtype)
    return value


def check_returned(model: ir.Model, inferred: ir.Model | None = None) -> None:
    """Hold all values of a graph against what was expected of them.

    Args:
        model: The graph.
        inferred: The same graph with numbers for its sizes, and all shapes inferred; None: the graph has them itself.

    Raises:
        Broken: One is something else.
    """
    noted = {str(value.name): value.meta.pop(_EXPECTED) for value in _values(model) if _EXPECTED in value.meta}
    for value in _values(inferred or model) if noted else ():
        if str(value.name) not in noted:
            continue
        what, site, shape, dtype = noted[str(value.name)]
        found = list(value.shape or ())
        if found != shape or value.dtype != dtype:
            was = f"{value.dtype} [{', '.join(map(str, found))}]"
            raise Broken(f"{what} at {site}: it returned {was}; expected {dtype} {shape}")


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for node in model.graph:
        yield from node.outputs
    yield from model.graph.initializers.values()
    yield from model.graph.inputs
