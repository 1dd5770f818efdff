"""Write one graph as a file of its own, atomically."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lmmprune.compiler.bundle.replace import check_file
from lmmprune.compiler.bundle.workplace import partial_of, workplace

if TYPE_CHECKING:
    import onnx_ir as ir

# Bytes of weights up to which they go into the file itself; one protobuf message ends at 2 GiB, and is built in memory.
INLINE = 1 << 29
# A whole number of pages and of Windows' 64 KiB: runtimes map such tensors instead of copying them.
ALIGNMENT = 65536


def data_file(path: Path, number: int = 0) -> Path:
    """Return where the weights of a graph may lie if they aren't in its file."""
    return path.with_name(f"{path.name}.{number}.data" if number else f"{path.name}.data")


def check_writable(path: Path, *, force: bool) -> None:
    """Refuse a destination that would lose something.

    Raises:
        InputError: It isn't a file; or a file is there and ``force`` isn't given.
    """
    check_file(path, force=force, only_files=True)
    # Weights without a graph beside what a killed process left are its own.
    left = partial_of(path).is_dir()
    for file in _data_files(path):
        check_file(file, force=force or left, only_files=True)


def write_graph(
    model: ir.Model,
    path: Path,
    *,
    force: bool = False,
    inline: int = INLINE,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> int:
    """Write a graph to ``path``, large weights to ``<path>.data``; return the bytes written.

    All of it appears, or nothing does; a graph that was there stays until the new one is complete. Two files can't be
    replaced in one step: where weights are there already, the new ones are called ``<path>.1.data``, and the old ones
    go when the new graph has its name.

    Args:
        model: The graph; its weights are read one after the other.
        path: Where; missing parents are made.
        force: Whether to replace what is there.
        inline: Bytes of weights up to which they go into the file itself.
        progress: Called with the tensors written and their number.

    Raises:
        InputError: Something is there, or it can't be written.
    """
    import onnx_ir as ir

    path = path.resolve()
    tensors = [value.const_value for value in model.graph.initializers.values()]
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    with workplace(path, lambda: check_writable(path, force=force)) as folder:
        earlier = _data_files(path)
        if not path.exists():
            _remove(earlier)
            earlier = set()
        data = next(file for number in itertools.count() if (file := data_file(path, number)) not in earlier)
        target, beside = folder / path.name, folder / data.name
        if size <= inline:
            ir.save(model, target)
        else:
            ir.save(
                model,
                target,
                external_data=beside.name,
                callback=lambda tensor, info: progress(info.index + 1, info.total),
                alignment=ALIGNMENT,
            )
        written = sum(file.stat().st_size for file in (target, beside) if file.exists())
        apart = beside.exists()
        if apart:
            os.rename(beside, data)
        try:
            os.replace(target, path)
        except BaseException:
            if apart:
                data.unlink()
            raise
        _remove(earlier)
    return written


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink()


def _data_files(path: Path) -> set[Path]:
    """Return the files with weights of the graph that is there, and of those before it whose process was killed."""
    name = re.compile(rf"{re.escape(path.name)}(\.[1-9][0-9]*)?\.data")
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    return {file for file in beside if name.fullmatch(file.name) and not file.is_dir()}
