"""Stream a graph's weights into a file: a piece is read or computed while the one before it is written and hashed."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import onnx_ir as ir

from lmmprune.compiler.bundle.manifest import File
from lmmprune.compiler.bundle.write_bundle import journal_of
from lmmprune.compiler.onnx_files.weight_pieces import PIECE, copied_from, pieces_ahead
from lmmprune.errors import ModelError
from lmmprune.lazy import numbers, size_of
from lmmprune.limits import bounded, parse_json
from lmmprune.stored import Array

INLINE_BYTES = 256
"""Smaller tensors stay in the graph."""
ALIGNMENT = 65536
"""Of tensors of a MiB and more: whole pages, and Windows' 64 KiB. Runtimes map such tensors instead of copying them."""
_ALIGNED_BYTES = 2**20

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A weight and its place in the file, in bytes."""

    value: ir.Value
    offset: int
    bytes: int


def layout(model: ir.Model, *, taken: frozenset[str] = frozenset()) -> list[Placed]:
    """Return where each weight goes, in the order of the graph's initializers.

    Args:
        model: The graph.
        taken: Names of weights that lie in another file already.
    """
    placed = []
    end = 0
    for name, value in model.graph.initializers.items():
        size = size_of(value)
        if name in taken or size < INLINE_BYTES:
            continue
        offset = -(-end // ALIGNMENT) * ALIGNMENT if size >= _ALIGNED_BYTES else end
        placed.append(Placed(value=value, offset=offset, bytes=size))
        end = offset + size
    return placed


def stream_weights(
    placed: Sequence[Placed],
    file: Path,
    *,
    note: Callable[[str, int], None],
    key: str = "",
    progress: Progress = lambda done, of: None,
) -> File:
    """Write the weights and make the graph refer to the file.

    Beside the file a journal says how far it is right: a later call with the same key, after this one was killed, goes
    on from there. It stays until the bundle is finished.

    Args:
        placed: From ``layout``.
        file: What to write; its folder is the graph's.
        note: Told of every tensor of the checkpoint with NaN or infinity, and how many.
        key: Digest of everything that the weights depend on; a journal of another key counts as nothing.
        progress: Called with the bytes written and how many there are.

    Returns:
        Size and SHA-256.

    Raises:
        ModelError: A value became infinite in the type that it is written in.
    """
    total = placed[-1].offset + placed[-1].bytes if placed else 0
    journal = journal_of(file)
    digest, done = _intact(file, journal, key)
    overflowed: dict[str, int] = {}
    damaged = False
    todo = [place for place in placed if place.offset + place.bytes > done]
    with file.open("r+b" if done else "wb") as stream, journal.open("a" if done else "w") as notes:
        if not done:
            notes.write(json.dumps({"key": key}) + "\n")
        stream.truncate(done)
        stream.seek(done)
        progress(done, total)
        for piece in pieces_ahead([place.value for place in todo]):
            place = todo[piece.weight]
            if done < place.offset:
                _write(stream, bytes(place.offset - done), digest)
                done = place.offset
            _write(stream, piece.data, digest)
            done += piece.data.size
            if piece.last:
                if piece.broken:
                    # Against the checkpoint that holds them, or the type that they are written in.
                    stored = copied_from(place.value)
                    if stored is None:
                        overflowed[str(place.value.name)] = piece.broken
                    else:
                        note(stored.name, piece.broken)
                        damaged = True
                stream.flush()
                notes.write(json.dumps({"done": done, "sha256": digest.hexdigest()}) + "\n")
                notes.flush()
            progress(done, total)
    if overflowed and not damaged:
        name, count = next(iter(overflowed.items()))
        raise ModelError(
            f"{len(overflowed)} weights have values that {placed[0].value.dtype} can't hold or that aren't numbers, "
            f"the first is '{name}' ({count} values): export with --dtype float32 or bfloat16"
        )
    for place in placed:
        value = place.value
        assert value.dtype is not None
        assert value.name is not None
        value.const_value = ir.ExternalTensor(
            location=file.name,
            offset=place.offset,
            length=place.bytes,
            dtype=value.dtype,
            shape=ir.Shape(numbers(value.shape)),
            name=value.name,
            base_dir=file.parent,
        )
    return File(bytes=total, sha256=digest.hexdigest())


def _write(stream: BinaryIO, data: Array | bytes, digest: Any) -> None:
    digest.update(data)
    stream.write(data)  # type: ignore[arg-type]  # NumPy's stubs don't call arrays buffers


def _intact(file: Path, journal: Path, key: str) -> tuple[Any, int]:
    """Return the running SHA-256 and the number of bytes that a journal vouches for, and that are still so."""
    fresh = hashlib.sha256()
    try:
        text = journal.read_text(encoding="utf-8")
        lines = [parse_json(line) for line in text.splitlines() if line.endswith("}")]
        if not lines or lines[0] != {"key": key}:
            return fresh, 0
        marks = [(bounded(line["done"], "done", 0, 2**63 - 1), line["sha256"]) for line in lines[1:]]
    except (OSError, ValueError, KeyError, TypeError):
        return fresh, 0
    digest = hashlib.sha256()
    done = 0
    good: tuple[Any, int] = fresh, 0
    with contextlib.suppress(OSError), file.open("rb") as stream:
        for end, expected in marks:
            left = end - done
            while left > 0 and (piece := stream.read(min(left, PIECE))):
                digest.update(piece)
                left -= len(piece)
            done = end
            if left > 0 or digest.hexdigest() != expected:
                break
            good = digest.copy(), done
    return good
