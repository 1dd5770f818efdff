"""Write a directory atomically: all of it appears under its name, or nothing does and what was there stays."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from lmmprune.errors import InputError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_WAY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@contextlib.contextmanager
def write_directory(destination: Path) -> Iterator[Path]:
    """Open a temporary sibling of ``destination`` for writing; rename it over ``destination`` on success.

    On any exception, Ctrl-C included, the temporary directory goes away and the destination is as it was.

    Args:
        destination: Absolute path; what is there is replaced, missing parents are made.

    Raises:
        InputError: The destination can't be written, or the disk is full.
    """
    made = _make_parents(destination)
    temporary = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.tmp")
    try:
        with _terminable():
            temporary.mkdir()
            yield temporary
            _replace(temporary, destination)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if (refusal := _refusal(error, destination)) is not None:
            raise refusal from error
        raise


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM (``timeout``, a machine shutting down) clean up as Ctrl-C does, where handlers can be set."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _make_parents(destination: Path) -> list[Path]:
    """Make missing parent directories; return those made, the deepest first."""
    made: list[Path] = []
    missing = [parent for parent in destination.parents if not parent.exists()]
    try:
        for parent in reversed(missing):
            parent.mkdir()
            made.insert(0, parent)
    except OSError as error:
        for parent in made:
            parent.rmdir()
        raise InputError(f"can't make the directory '{destination.parent}' ({error.strerror})") from error
    return made


def _replace(temporary: Path, destination: Path) -> None:
    """Rename over the destination; what was there is only deleted when the new one has its name."""
    if not destination.exists():
        os.rename(temporary, destination)
        return
    old = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.old")
    os.rename(destination, old)
    try:
        os.rename(temporary, destination)
    except BaseException:
        os.rename(old, destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _refusal(error: BaseException, destination: Path) -> InputError | None:
    """Return the one-line refusal for a full or unwritable disk, None for everything else."""
    # Writers in Rust or C++ (safetensors, protobuf) report a full disk in words only.
    full = isinstance(error, OSError) and error.errno in _NO_SPACE
    if full or "No space left on device" in str(error):
        free = shutil.disk_usage(_existing(destination)).free
        return InputError(
            f"the disk of '{destination}' is full ({free / 2**20:.0f} MiB left): nothing was written; "
            "free some space or give another directory"
        )
    if isinstance(error, OSError) and error.errno in _NO_WAY:
        return InputError(f"can't write below '{destination.parent}' ({error.strerror}): give another directory")
    return None


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())
