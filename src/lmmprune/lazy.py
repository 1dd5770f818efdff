"""Tensors that stay on disk until the bundle is written: a reader, and what is to be done to its values on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
