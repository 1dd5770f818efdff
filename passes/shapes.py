"""Shape inference that is redone from the inputs and that fails loudly."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from lmmprune.passes.refusals import Refused


def infer_shapes(model: ir.Model, *, stale: Iterable[ir.Value] = ()) -> None:
    """Infer every shape of a model anew.

    Args:
        model: Changed in place.
        stale: Values whose recorded shape is no longer true, with everything computed from them.

    Raises:
        Refused: ONNX's own inference finds a contradiction.
    """
    for value in reached(stale):
        value.shape = None
    try:
        ShapeInferencePass()(model)
    except ir.passes.PassError as error:
        raise Refused(f"shape inference failed: {_cause(error)}") from error
    missing = [v.name for node in model.graph for v in node.outputs if v.shape is None and v.name]
    if missing:
        raise Refused(f"no shape could be inferred for '{missing[0]}' (and {len(missing) - 1} more)")


def reached(values: Iterable[ir.Value]) -> list[ir.Value]:
    """Return the values and all that is computed from them, each once."""
    seen: dict[ir.Value, None] = {}
    work = list(values)
    while work:
        value = work.pop()
        if value in seen:
            continue
        seen[value] = None
        work.extend(output for node, _ in value.uses() for output in node.outputs)
    return list(seen)


def static_shape(value: ir.Value) -> tuple[int, ...]:
    """Return a value's shape as numbers.

    Raises:
        Refused: It has none, or a symbolic dimension.
    """
    dims = [dim for dim in value.shape or () if isinstance(dim, int)]
    if value.shape is None or len(dims) != len(value.shape):
        raise Refused(f"'{value.name}' has shape {value.shape}, expected numbers only: freeze the shapes first")
    return tuple(dims)


def _cause(error: BaseException) -> str:
    inner: BaseException = error
    while inner.__cause__ is not None and not isinstance(inner, onnx.shape_inference.InferenceError):
        inner = inner.__cause__
    return str(inner).splitlines()[0]
