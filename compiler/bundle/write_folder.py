"""Write a folder atomically: all of it appears under its name, or nothing does."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from lmmprune.compiler.bundle.bundle import file_sha256
from lmmprune.compiler.bundle.replace import check_directory
from lmmprune.compiler.bundle.workplace import UNFINISHED, replace_directory

SUMS = "SHA256SUMS"


@contextlib.contextmanager
def write_folder(destination: Path, kind: str, *, force: bool = False) -> Iterator[Path]:
    """Open a sibling of ``destination`` for writing, which gets its name on success.

    Args:
        destination: The folder to be; absent or empty, with ``force`` also one of the same kind. Missing parents are
            made.
        kind: What is written, of those in ``replace.py``.
        force: Replace what is there.

    Raises:
        InputError: It holds something, can't be written, or the disk is full.
    """
    destination = destination.resolve()
    with replace_directory(destination, lambda: check_directory(destination, kind, force=force)) as folder:
        yield folder


def place(source: Path, destination: Path) -> None:
    """Copy a file into a folder.

    A hard link would save the space, but onnx-ir refuses weights that have a second name (seen in 1.1).
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, destination)


def write_sums(folder: Path, *, known: dict[str, str]) -> None:
    """Write ``SHA256SUMS`` of every file below a folder, for ``sha256sum -c``.

    Args:
        folder: The folder.
        known: Checksums that needn't be computed again, by name below the folder.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [
        f"{known.get(name) or file_sha256(folder / name)}  {name}\n" for name in names if name not in (SUMS, UNFINISHED)
    ]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8", newline="\n")
