"""Tensors that stay on disk until the bundle is written: a reader, and what is to be done to its values on the way."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]


def lazy(read: Callable[[], Array], *, dtype: ir.DataType, shape: Sequence[int], name: str) -> ir.LazyTensor:
    """Return a tensor whose values are read when they are needed, and not kept."""

    def evaluate() -> ir.Tensor[Any]:
        return ir.Tensor(np.ascontiguousarray(read()), dtype=dtype, name=name)

    return ir.LazyTensor(evaluate, dtype=dtype, shape=ir.Shape(shape), name=name)


def derive(
    value: ir.Value, change: Callable[[Array], Array], *, dtype: ir.DataType, shape: Sequence[int], name: str
) -> ir.Value:
    """Return a new initializer whose values are computed from another one's while they are streamed."""
    source = value.const_value
    assert source is not None
    tensor = lazy(lambda: change(source.numpy()), dtype=dtype, shape=shape, name=name)
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)


def is_lazy(value: ir.Value | None) -> bool:
    """Return whether a value is a weight that is still on disk."""
    return value is not None and isinstance(value.const_value, ir.LazyTensor)


def numbers(shape: ir.Shape | None) -> tuple[int, ...]:
    """Return a static shape as plain numbers."""
    assert shape is not None
    return tuple(int(dim) for dim in shape)  # type: ignore[arg-type]  # a symbol here is our own mistake


@contextlib.contextmanager
def weights_out_of_sight(model: ir.Model) -> Iterator[None]:
    """Hide the weights' values: folding and some rewrite rules would read whatever they can see."""
    hidden = {value: value.const_value for value in model.graph.initializers.values() if is_lazy(value)}
    for value in hidden:
        value.const_value = None
    # Both warn at each value that they can't read, which is the point here.
    levels = {name: logging.getLogger(name).level for name in ("onnx_ir", "onnxscript")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for value, tensor in hidden.items():
            value.const_value = tensor
