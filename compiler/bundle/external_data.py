"""Which files beside an ONNX graph hold weights of it, read from its bytes: the base install has no ONNX library."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from lmmprune.errors import BundleError

# Fields that lead to tensors, by message (onnx.proto): number -> the message below.
_BELOW = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_LOCATION = b"location"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 64  # of messages inside of each other; graphs in nodes in graphs


def external_files(graph: Path) -> set[str]:
    """Return the locations that a graph's tensors name, as they stand there.

    Raises:
        BundleError: The file can't be read, or isn't ONNX.
    """
    try:
        with graph.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return {*_locations(data, 0, len(data), "model", 0)}
    except (OSError, ValueError, IndexError) as error:
        raise BundleError(f"'{graph}' isn't an ONNX file that can be read ({error}): export again") from error


def _locations(data: mmap.mmap, begin: int, end: int, kind: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("too deep")
    # The bytes of a key stand in one piece wherever it is: what doesn't hold them needn't be looked into.
    if data.find(_LOCATION, begin, end) < 0:
        _check(data, begin, end, depth)
        return
    if kind == "entry":
        fields = [(number, data[start:stop]) for number, start, stop in _fields(data, begin, end)]
        if (1, _LOCATION) in fields:
            yield from (value.decode() for number, value in fields if number == 2)
        return
    for number, start, stop in _fields(data, begin, end):
        if (below := _BELOW[kind].get(number)) is not None:
            yield from _locations(data, start, stop, below, depth + 1)


def _check(data: mmap.mmap, begin: int, end: int, depth: int) -> None:
    """Refuse what isn't a message, at the top: what is deeper is left to whoever computes it."""
    if depth == 0:
        for _ in _fields(data, begin, end):
            pass


def _fields(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, begin and end of every field of a message that holds bytes.

    Raises:
        ValueError: It isn't a message.
    """
    place = begin
    while place < end:
        tag, place = _varint(data, place, end)
        kind = tag & 7
        if kind == _BYTES:
            size, place = _varint(data, place, end)
            yield tag >> 3, place, place + size
            place += size
        elif kind == _VARINT:
            _, place = _varint(data, place, end)
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if place > end:
            raise ValueError("cut off")


def _varint(data: mmap.mmap, place: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while place < end and shift < 70:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
    raise ValueError("cut off")
