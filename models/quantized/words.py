"""Numbers of four or eight bits in words of 32, as all packers lay them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmmprune.stored import Array

WORD = 32


def unpack_rows(words: Array, bits: int) -> Array:
    """Return uint8 ``[R*32/bits,C]`` of int32 ``[R,C]``: the lowest bits of a word are the first of its rows."""
    count = WORD // bits
    rows, columns = words.shape
    result = np.empty((rows, count, columns), np.uint8)
    for place, field in enumerate(_fields(words, bits)):
        result[:, place] = field
    return result.reshape(rows * count, columns)


def unpack_columns(words: Array, bits: int, order: Sequence[int] | None = None) -> Array:
    """Return uint8 ``[R,C*32/bits]`` of int32 ``[R,C]``.

    Args:
        words: The words.
        bits: Of a number.
        order: The column, of those of a word, that each of its fields is, the lowest field first; None: in their order.
    """
    count = WORD // bits
    rows, columns = words.shape
    result = np.empty((rows, columns, count), np.uint8)
    for place, field in zip(range(count) if order is None else order, _fields(words, bits), strict=True):
        result[:, :, place] = field
    return result.reshape(rows, columns * count)


def _fields(words: Array, bits: int) -> list[Array]:
    raw = words.astype("<i4", copy=False).view(np.uint32)
    return [(raw >> (place * bits) & (2**bits - 1)).astype(np.uint8) for place in range(WORD // bits)]
