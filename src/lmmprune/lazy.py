"""Weights that stay on disk until the bundle is written: a reader, and what is to be done to its values on the way."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from lmmprune.stored import Array, Stored


@dataclass(frozen=True)
class Origin:
    """The parameter of the loaded module that a weight is, and the order of its axes; None: as they are there."""

    weight: str
    perm: tuple[int, ...] | None = None


class Weight(ir.LazyTensor):
    """A tensor whose values are read when they are needed, and not kept.

    Attributes:
        read: Returns the values in whatever type they lie in; ``numpy()`` gives them in ``dtype``.
        stored: Where a file holds them; None where they are computed.
        origin: The parameter that it is; None where it is made of one.
    """

    def __init__(
        self,
        read: Callable[[], Array],
        *,
        dtype: ir.DataType,
        shape: Sequence[int],
        name: str,
        stored: Stored | None = None,
        origin: Origin | None = None,
    ) -> None:
        super().__init__(self._evaluate, dtype=dtype, shape=ir.Shape(shape), name=name)
        self.read = read
        self.stored = stored
        self.origin = origin

    def _evaluate(self) -> ir.Tensor[Any]:
        return ir.Tensor(contiguous(self.read(), self.dtype.numpy()), dtype=self.dtype, name=self.name)


def lazy(
    read: Callable[[], Array],
    *,
    dtype: ir.DataType,
    shape: Sequence[int],
    name: str,
    stored: Stored | None = None,
    origin: Origin | None = None,
) -> Weight:
    """Return a tensor whose values are read when they are needed, and not kept."""
    return Weight(read, dtype=dtype, shape=shape, name=name, stored=stored, origin=origin)


def derive(
    value: ir.Value,
    change: Callable[[Array], Array],
    *,
    dtype: ir.DataType,
    shape: Sequence[int],
    name: str,
    stored: Stored | None = None,
    origin: Origin | None = None,
) -> ir.Value:
    """Return a new initializer whose values are computed from another one's while they are streamed.

    Args:
        value: The other initializer.
        change: Gets its values in the type of the checkpoint, as a view where possible.
        dtype: Type of the result, to which it is converted last.
        shape: Its shape.
        name: Its name.
        stored: Where a file holds the result.
        origin: The parameter that the result is, its axes in another order.
    """
    source = value.const_value
    assert source is not None
    read = source.read if isinstance(source, Weight) else source.numpy
    tensor = lazy(lambda: change(read()), dtype=dtype, shape=shape, name=name, stored=stored, origin=origin)
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)


def contiguous(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return values in a type, row by row in memory; a copy is made only where it must be."""
    if array.dtype != dtype:
        # Converted as it lies: a transposed view stays one.
        array = array.astype(dtype)
    if array.flags.c_contiguous:
        return array
    if array.ndim != 2 or not array.T.flags.c_contiguous:
        return np.ascontiguousarray(array)
    result = np.empty(array.shape, dtype)
    transpose(bits_of(array.T), bits_of(result))
    return result


def transpose(matrix: Array, result: Array) -> None:
    """Write the transpose of a matrix ``[r,c]`` to ``[c,r]``, several times as fast as NumPy's row by row."""
    rows, columns = matrix.shape
    for row in range(0, rows, _TILE):
        for column in range(0, columns, _TILE):
            result[column : column + _TILE, row : row + _TILE] = matrix[row : row + _TILE, column : column + _TILE].T


def bits_of(array: Array) -> Array:
    """Return an array's values as unsigned numbers: NumPy moves foreign types, bfloat16 among them, one by one."""
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))


# All bits of the exponent are set in NaN and infinity, and nowhere else; looking at bits is fast in every type.
_EXPONENTS: dict[ir.DataType, tuple[Any, int]] = {
    ir.DataType.FLOAT16: (np.uint16, 0x7C00),
    ir.DataType.BFLOAT16: (np.uint16, 0x7F80),
    ir.DataType.FLOAT: (np.uint32, 0x7F800000),
}
_BLOCK = 2**17
"""Values that are looked at in one go: they stay in the processor's cache."""
_TILE = 128
"""Rows and columns that are transposed in one go, for the same reason."""


def count_non_finite(array: Array) -> int:
    """Return how many values are NaN or infinite; 0 for types that aren't 16 or 32 bits of floating point."""
    dtype = ir.DataType.from_numpy(array.dtype)
    if dtype not in _EXPONENTS:
        return 0
    bits, exponent = _EXPONENTS[dtype]
    values = array.reshape(-1).view(bits)
    scratch = np.empty(min(values.size, _BLOCK), bits)
    count = 0
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        masked = np.bitwise_and(block, bits(exponent), out=scratch[: block.size])
        if masked.max() == exponent:
            count += int(np.count_nonzero(masked == exponent))
    return count


def array_of(value: ir.Value) -> Array:
    """Return the values of an initializer in its own type, row by row in memory."""
    assert value.const_value is not None
    return np.ascontiguousarray(value.const_value.numpy())


def size_of(value: ir.Value) -> int:
    """Return the bytes of an initializer in a file, where two numbers of four bits share one."""
    assert value.dtype is not None
    return math.ceil(value.dtype.bitwidth * math.prod(numbers(value.shape)) / 8)


def packed(array: Array) -> Array:
    """Return numbers of four bits, one a byte, as ONNX stores them: two a byte, the first one in its lower half."""
    halves = array.reshape(-1).view(np.uint8) & 0x0F
    if halves.size % 2:
        halves = np.append(halves, np.uint8(0))
    return halves[::2] | halves[1::2] << 4


def stored_of(value: ir.Value) -> Stored | None:
    """Return where a file holds the values of an initializer, None where they are computed."""
    return value.const_value.stored if isinstance(value.const_value, Weight) else None


def values_of(value: ir.Value | None) -> Array:
    """Return the values of an initializer in the type in which they lie, which takes the least memory."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.read() if isinstance(value.const_value, Weight) else value.const_value.numpy()


def origin_of(value: ir.Value) -> Origin | None:
    """Return the parameter that an initializer is, None where it is made of one or is a constant."""
    return value.const_value.origin if isinstance(value.const_value, Weight) else None


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
