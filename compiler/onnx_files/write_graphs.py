"""Write the graphs of a bundle: their weights streamed beside them, or linked from the checkpoint."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import onnx_ir as ir

from lmmprune.compiler.bundle.engines import SHARED
from lmmprune.compiler.bundle.manifest import File
from lmmprune.compiler.onnx_files.stream_weights import layout, stream_weights
from lmmprune.compiler.onnx_files.weight_pieces import copied_from, pieces_ahead
from lmmprune.contained import stray
from lmmprune.errors import BundleError, InputError, below
from lmmprune.lazy import is_lazy, numbers
from lmmprune.models.checkpoint_reader import CheckpointReader
from lmmprune.passes.graph.restore_transposes import RestoreTransposes


@below("writing the graphs", "is there room on the disk, and can it be written to?", kind=BundleError)
def write_graphs(
    parts: Mapping[str, ir.Model],
    directory: Path,
    checkpoint: CheckpointReader,
    *,
    key: str,
    shared: bool,
    lenders: Mapping[str, str] = MappingProxyType({}),
    progress: Callable[[str, int, int], None],
) -> dict[str, File]:
    """Write ``PART.onnx`` and its weights, ``PART.onnx.data``, for every part.

    Args:
        parts: Finished graphs by name; they refer to the files afterwards.
        directory: The bundle in the making.
        checkpoint: What the weights are read from.
        key: Digest of everything that the weights depend on (see ``stream_weights``).
        shared: Whether weights that the checkpoint holds as they are needed are linked, not copied.
        lenders: Part -> an earlier one; weights that both have, by name, lie in the earlier one's file alone.
        progress: Called with what is written, how many bytes of it, and how many there are.

    Returns:
        Size and SHA-256 of the files of weights that were streamed.

    Raises:
        ModelError: The checkpoint holds NaN or infinity, or values that the bundle's type can't hold.
        InputError: Weights are to be shared, and can't be.
    """
    files = {}
    for part, model in parts.items():
        lender = parts.get(lenders.get(part, ""))
        taken = frozenset[str]()
        if shared:
            look = functools.partial(progress, f"look at {part}")
            taken = share_weights(model, directory, note=checkpoint.note, progress=look)
        if lender is not None:
            taken |= _borrow(model, lender)
        placed = layout(model, taken=taken)
        weights = directory / f"{part}.onnx.data"
        if placed:
            files[weights.name] = stream_weights(
                placed,
                weights,
                note=checkpoint.note,
                key=_digest(key, part, [(str(p.value.name), str(p.value.dtype), p.offset, p.bytes) for p in placed]),
                progress=lambda done, of, part=part: progress(f"write {part}", done, of),  # type: ignore[misc]  # mypy: default of a lambda
            )
        checkpoint.refuse_damage()
        ir.save(model, directory / f"{part}.onnx")
    return files


def share_weights(
    model: ir.Model, directory: Path, *, note: Callable[[str, int], None], progress: Callable[[int, int], None]
) -> frozenset[str]:
    """Make a graph refer to the checkpoint's files, which become hard links in the bundle.

    Links, because runtimes take no external data from outside of the graph's folder, not even through a symbolic link;
    and removing the checkpoint doesn't harm them. Transposes stay in the graph. All values are looked at once: what
    isn't a number is refused here as it is in a copy.

    Args:
        model: The graph.
        directory: The bundle in the making.
        note: Told of every tensor of the checkpoint with NaN or infinity, and how many.
        progress: Called with the bytes looked at and how many there are.

    Returns:
        The names of the weights that lie in the checkpoint.

    Raises:
        InputError: No weight lies there as it is needed, or the bundle is on another disk.
    """
    RestoreTransposes()(model)
    found = []
    for value in model.graph.initializers.values():
        stored = copied_from(value)
        if stored is not None and stored.perm is None:
            found.append((value, stored))
    if not found:
        raise InputError(
            "--share-weights: the checkpoint holds no weight in the type of the bundle; give the --dtype of the"
            " checkpoint, without --int8"
        )
    for _, stored in found:  # a disk that takes no links says so before gigabytes are read
        _link(stored.file, directory / SHARED / stored.file.name)
    done, total = 0, sum(stored.bytes for _, stored in found)
    for piece in pieces_ahead([value for value, _ in found]):
        if piece.last and piece.broken:
            note(found[piece.weight][1].name, piece.broken)
        done += piece.data.size
        progress(done, total)
    for value, stored in found:
        value.const_value = ir.ExternalTensor(
            location=(Path(SHARED) / stored.file.name).as_posix(),
            offset=stored.offset,
            length=stored.bytes,
            dtype=stored.dtype,
            shape=ir.Shape(numbers(value.shape)),
            name=str(value.name),
            base_dir=directory,
        )
    return frozenset(str(value.name) for value, _ in found)


def _borrow(model: ir.Model, lender: ir.Model) -> frozenset[str]:
    """Make a graph refer to where another one's weights were written; return the names of those that both have."""
    found = set()
    for name, value in model.graph.initializers.items():
        theirs = lender.graph.initializers.get(name)
        if theirs is None or (theirs.dtype, theirs.shape) != (value.dtype, value.shape):
            continue
        if is_lazy(value) and isinstance(theirs.const_value, ir.ExternalTensor):
            value.const_value = theirs.const_value
            found.add(name)
    return frozenset(found)


def _link(file: Path, link: Path) -> None:
    if link.exists():
        return
    if reason := stray(file.parent, file.name):
        raise InputError(
            f"--share-weights: '{file}' {reason}; a bundle takes along what lies in the checkpoint alone: copy it there"
        )
    link.parent.mkdir(exist_ok=True)
    try:
        # A hub's cache holds links to the files.
        os.link(file.resolve(), link)
    except OSError as error:
        raise InputError(
            f"--share-weights: '{file}' can't be linked into '{link.parent.parent.parent}' ({error.strerror}): give an"
            " output directory on the checkpoint's own disk"
        ) from error


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
