"""Write files atomically: into a temporary sibling, which is renamed when all of it is there."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lmmprune.compiler.bundle.lock import create_locked, remove_abandoned
from lmmprune.errors import InputError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_WAY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary sibling of a file, which gets its name when all of it is on the disk.

    After an exception the file is as it was; also when the process is killed, whenever that is. A pipe or a device is
    written to as it is.

    Args:
        path: The file; missing parents are made.

    Raises:
        OSError: The disk is full, or not to be written.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as special:
            yield special
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))
    stream, temporary = create_locked(lambda: path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp"))
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            if os.name != "nt":  # as long as it is open, nobody takes it for a dead process's
                os.replace(temporary, path)
        if os.name == "nt":
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


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


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM (``timeout``, a machine shutting down) clean up as Ctrl-C does, where handlers can be set."""
    elsewhere = threading.current_thread() is not threading.main_thread()
    if elsewhere or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
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
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return InputError(f"the name '{destination.name[:60]}…' is too long for this disk: give a shorter one")
    if isinstance(error, OSError) and error.errno in _NO_WAY:
        return InputError(f"can't write below '{destination.parent}' ({error.strerror}): give another directory")
    return None


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())
