"""Write one graph as a file of its own, atomically."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lmmprune.compiler.bundle.atomic import temporary_sibling
from lmmprune.compiler.bundle.replace import check_file

if TYPE_CHECKING:
    import onnx_ir as ir

# Bytes of weights up to which they go into the file itself; one protobuf message ends at 2 GiB, and is built in memory.
INLINE = 1 << 29
# A whole number of pages and of Windows' 64 KiB: runtimes map such tensors instead of copying them.
ALIGNMENT = 65536


def data_file(path: Path) -> Path:
    """Return where the weights of a graph lie if they aren't in its file."""
    return path.with_name(f"{path.name}.data")


def check_writable(path: Path, *, force: bool) -> None:
    """Refuse a destination that would lose something.

    Raises:
        InputError: It is a directory, or a file is there and ``force`` isn't given.
    """
    for file in (path, data_file(path)):
        check_file(file, force=force)


def write_graph(
    model: ir.Model,
    path: Path,
    *,
    force: bool = False,
    inline: int = INLINE,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> int:
    """Write a graph to ``path``, large weights to ``<path>.data``; return the bytes written.

    All of it appears, or nothing does; a graph that was there stays until the new one is complete.

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
    check_writable(path, force=force)
    tensors = [value.const_value for value in model.graph.initializers.values()]
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    with temporary_sibling(path) as folder:
        target = folder / path.name
        if size <= inline:
            ir.save(model, target)
        else:
            ir.save(
                model,
                target,
                external_data=data_file(target).name,
                callback=lambda tensor, info: progress(info.index + 1, info.total),
                alignment=ALIGNMENT,
            )
        written = sum(file.stat().st_size for file in folder.iterdir())
        # A graph must never stand beside another one's weights: the old one goes first.
        path.unlink(missing_ok=True)
        data_file(path).unlink(missing_ok=True)
        if data_file(target).exists():
            os.rename(data_file(target), data_file(path))
        os.rename(target, path)
    return written
