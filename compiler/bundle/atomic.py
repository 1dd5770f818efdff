"""Write files atomically: into a temporary sibling, which is renamed when all of it is there; one writer at a time."""

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
from typing import BinaryIO

from filelock import FileLock, Timeout

from lmmprune.errors import InputError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_WAY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@contextlib.contextmanager
def temporary_sibling(destination: Path) -> Iterator[Path]:
    """Give an empty directory beside a destination, into which the caller writes and out of which it renames.

    At the end it goes away, with what is left in it; after an exception (Ctrl-C and SIGTERM included) so do the
    parents that were made for it.

    Args:
        destination: Absolute path of what shall be written; missing parents are made.

    Raises:
        InputError: The parents can't be made or written, or the disk is full.
    """
    temporary = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.tmp")
    with made_parents(destination):
        try:
            with terminable():
                temporary.mkdir()
                yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary sibling of a file, which gets its name when all of it is on the disk.

    After an exception the file is as it was; also when the process is killed, whenever that is.

    Args:
        path: The file; missing parents are made.

    Raises:
        OSError: The disk is full, or not to be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def only_writer(lock: Path, refusal: str) -> Iterator[None]:
    """Hold a lock for as long as the block runs, or the process lives.

    Args:
        lock: The file to lock; it is made, and may stay.
        refusal: What to say where another process holds it.

    Raises:
        InputError: ``refusal``.
        OSError: The file can't be made.
    """
    held = FileLock(lock)
    try:
        # The system lets go of it when the process ends, however it ends.
        held.acquire(timeout=0)
    except Timeout as error:
        raise InputError(refusal) from error
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def made_parents(destination: Path) -> Iterator[None]:
    """Make missing parent directories; after an exception they go away, if nothing is in them.

    Args:
        destination: Absolute path of what shall be written.

    Raises:
        InputError: They can't be made or written, or the disk is full.
    """
    made = _make_parents(destination)
    try:
        yield
    except BaseException as error:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if (refused := _refusal(error, destination)) is not None:
            raise refused from error
        raise


def rename_over(temporary: Path, destination: Path) -> None:
    """Rename a directory over another, which is only deleted when the new one has its name."""
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


@contextlib.contextmanager
def terminable() -> Iterator[None]:
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
            # Another process may make it at the same time; then it is that one's to remove.
            with contextlib.suppress(FileExistsError):
                parent.mkdir()
                made.insert(0, parent)
    except OSError as error:
        for parent in made:
            parent.rmdir()
        raise InputError(f"can't make the directory '{destination.parent}' ({error.strerror})") from error
    return made


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
