"""The bytes of weights, piece by piece, in buffers that are used again: fresh memory costs more than the work on it."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.lazy import array_of, bits_of, count_non_finite, packed, stored_of, transpose
from lmmprune.stored import Array, Stored, bytes_of

PIECE = 2**24
"""Bytes of a piece, about."""
_AHEAD = 6
"""Pieces that are made before they are asked for: while a matrix is read that is to be transposed, none can be made."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Bytes of a weight.

    Attributes:
        data: uint8; good until the next piece is asked for.
        weight: The weight's index.
        broken: How many of the weight's values aren't finite, as far as they have been looked at.
        last: Whether the weight ends here.
    """

    data: Array
    weight: int
    broken: int
    last: bool


def pieces_ahead(values: Sequence[ir.Value]) -> Iterator[Piece]:
    """Yield the pieces of all weights, in order; the next ones are made while one is used.

    Raises:
        ModelError: A file is gone or was cut off.
    """
    pieces = _pieces(values)
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = collections.deque(pool.submit(next, pieces, None) for _ in range(_AHEAD))
        while (piece := coming.popleft().result()) is not None:
            coming.append(pool.submit(next, pieces, None))
            yield piece


def copied_from(value: ir.Value) -> Stored | None:
    """Return where a file holds a weight's bytes, in its type and at most transposed; None if they are computed."""
    stored = stored_of(value)
    same = stored is not None and stored.dtype == value.dtype and stored.perm in (None, (1, 0))
    return stored if same else None


class _Buffer:
    """Memory that grows to the largest request."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def take(self, size: int) -> Array:
        if self._memory.size < size:
            self._memory = np.empty(size, np.uint8)
        return self._memory[:size]


def _pieces(values: Sequence[ir.Value]) -> Iterator[Piece]:
    # One is in use while others are filled.
    buffers = itertools.cycle([_Buffer() for _ in range(_AHEAD + 1)])
    whole = _Buffer()
    for index, value in enumerate(values):
        stored = copied_from(value)
        if stored is None:
            yield from _computed(value, index)
        elif stored.perm is None:
            yield from _as_it_lies(stored, index, buffers)
        else:
            yield from _transposed(stored, index, buffers, whole)


def _computed(value: ir.Value, index: int) -> Iterator[Piece]:
    array = array_of(value)
    four = value.dtype is not None and value.dtype.bitwidth == 4
    memory, broken = packed(array) if four else bytes_of(array), _overflown(array)
    for start in range(0, memory.size, PIECE):
        data = memory[start : start + PIECE]
        yield Piece(data=data, weight=index, broken=broken, last=start + data.size == memory.size)


def _overflown(array: Array) -> int:
    """Return how many values aren't finite in a shorter type than the one they were read in."""
    return count_non_finite(array) if array.dtype.itemsize == 2 else 0


def _as_it_lies(stored: Stored, index: int, buffers: Iterator[_Buffer]) -> Iterator[Piece]:
    broken = 0
    for start in range(0, stored.bytes, PIECE):
        data = next(buffers).take(min(PIECE, stored.bytes - start))
        stored.fill(data, start)
        broken += count_non_finite(data.view(stored.dtype.numpy()))
        yield Piece(data=data, weight=index, broken=broken, last=start + data.size == stored.bytes)


def _transposed(stored: Stored, index: int, buffers: Iterator[_Buffer], whole: _Buffer) -> Iterator[Piece]:
    rows, columns = stored.shape
    memory = whole.take(stored.bytes)
    stored.fill(memory)
    broken = count_non_finite(memory.view(stored.dtype.numpy()))
    matrix = bits_of(memory.view(stored.dtype.numpy())).reshape(rows, columns)
    step = max(1, PIECE // (rows * matrix.itemsize))
    for start in range(0, columns, step):
        width = min(step, columns - start)
        data = next(buffers).take(width * rows * matrix.itemsize)
        transpose(matrix[:, start : start + width], data.view(matrix.dtype).reshape(width, rows))
        yield Piece(data=data, weight=index, broken=broken, last=start + width == columns)
