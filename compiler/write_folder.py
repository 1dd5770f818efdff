"""Write a folder atomically: all of it appears under its name, or nothing does."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from lmmprune.compiler.atomic import rename_over, temporary_sibling
from lmmprune.compiler.bundle import file_sha256
from lmmprune.errors import InputError

SUMS = "SHA256SUMS"


@contextlib.contextmanager
def write_folder(destination: Path) -> Iterator[Path]:
    """Open a temporary sibling of ``destination`` for writing; rename it to ``destination`` on success.

    Args:
        destination: The folder to be; absent or empty. Missing parents are made.

    Raises:
        InputError: It holds something, can't be written, or the disk is full.
    """
    destination = destination.resolve()
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        what = "isn't empty" if destination.is_dir() else "is a file"
        raise InputError(f"'{destination}' {what}: give a new folder with -o")
    with temporary_sibling(destination) as temporary:
        yield temporary
        rename_over(temporary, destination)


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
    lines = [f"{known.get(name) or file_sha256(folder / name)}  {name}\n" for name in names if name != SUMS]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
