"""Shape inference that is redone from the inputs and that fails loudly."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from lmmprune.passes.graph.refusals import Refused


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
    with _failures() as failures:
        ShapeInferencePass()(model)
    if failures:
        raise Refused(f"shape inference failed: {str(failures[0]).splitlines()[0]}") from failures[0]
    missing = [v.name for node in model.graph for v in node.outputs if v.shape is None and v.name]
    if missing:
        raise Refused(f"no shape could be inferred for '{missing[0]}' (and {len(missing) - 1} more)")


def bind_dims(model: ir.Model, dims: Mapping[str, int]) -> None:
    """Give symbolic dimensions numbers, wherever a shape names them."""
    inner = [output for node in model.graph for output in node.outputs]
    for value in [*model.graph.inputs, *inner]:
        if value.shape is None or not any(isinstance(dim, ir.SymbolicDim) for dim in value.shape):
            continue
        numbers = [dims.get(str(dim.value), dim) if isinstance(dim, ir.SymbolicDim) else dim for dim in value.shape]
        value.shape = ir.Shape(numbers)


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


def is_constant(value: ir.Value) -> bool:
    """Return whether a value is made of weights and constants alone."""
    work, seen = [value], {value}
    while work:
        here = work.pop()
        node = here.producer()
        if node is None and not (here.is_initializer() or here.const_value is not None):
            return False
        for before in () if node is None else node.inputs:
            if before is not None and before not in seen:
                seen.add(before)
                work.append(before)
    return True


def static_shape(value: ir.Value) -> tuple[int, ...]:
    """Return a value's shape as numbers.

    Raises:
        Refused: It has none, or a symbolic dimension.
    """
    dims = [dim for dim in value.shape or () if isinstance(dim, int)]
    if value.shape is None or len(dims) != len(value.shape):
        raise Refused(f"'{value.name}' has shape {value.shape}, expected numbers only: freeze the shapes first")
    return tuple(dims)


@contextlib.contextmanager
def _failures() -> Iterator[list[BaseException]]:
    """Collect the exceptions that onnx-ir's inference logs instead of raising, and keep its log off the terminal."""
    found: list[BaseException] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1]:
                found.append(record.exc_info[1])

    logger, collector = logging.getLogger("onnx_ir"), Collector()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(collector)
    try:
        yield found
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagate
