"""Files of a study and of what goes on like one: there whole or not at all."""

from __future__ import annotations

from pathlib import Path

from lmmprune.compiler.bundle.atomic import replace_file
from lmmprune.errors import InputError


def write_text(file: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, whenever the process ends."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, whenever the process ends.

    Raises:
        InputError: The disk is full, or not to be written.
    """
    try:
        with replace_file(file) as stream:
            stream.write(data)
    except OSError as error:
        raise InputError(f"can't write '{file}' ({error.strerror}): free some space, or give another folder") from error
