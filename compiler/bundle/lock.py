"""One writer at a time: a lock that the system lets go of when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from lmmprune.errors import InputError


def _unix() -> Any:
    """Return the module that locks files, None on Windows."""
    try:
        import fcntl
    except ImportError:
        return None
    return fcntl


@contextlib.contextmanager
def only_writer(lock: Path, refusal: str | None) -> Iterator[None]:
    """Hold a lock for as long as the block runs, or the process lives; its file goes away afterwards.

    A file that is there all the same was left by a process that was killed; it holds that one's number.

    Args:
        lock: The file to lock.
        refusal: What to say where another process holds it; None waits for it.

    Raises:
        InputError: ``refusal``; or the file is a link or no file, or its disk knows no locks.
        OSError: The file can't be made.
    """
    if _unix() is None:
        with _held(lock, refusal):
            yield
        return
    handle = _take(lock, refusal)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        # While it is held: whoever waits for it finds that it isn't the file of that name any more.
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(handle)


def _take(lock: Path, refusal: str | None) -> int:
    fcntl = _unix()
    while True:
        handle = _open(lock)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError as error:
            os.close(handle)
            raise InputError(refusal or "") from error
        except OSError as error:
            os.close(handle)
            raise InputError(f"'{lock}' can't be locked ({error.strerror}): give a place on another disk") from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.lstat(lock)):
                return handle
        os.close(handle)  # the one before has removed it


def _open(lock: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(lock, flags, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(f"'{lock}' is a link, where lmmprune makes a file to lock: remove it") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError(f"'{lock}' is no file, where lmmprune makes one to lock: remove it")
    return handle


def create_locked(name: Callable[[], Path]) -> tuple[BinaryIO, Path]:
    """Create a file that is locked for as long as it is open, and return it with its path.

    Args:
        name: Gives a path that isn't taken.

    Raises:
        OSError: It can't be made.
    """
    fcntl = _unix()
    while True:
        path = name()
        stream = path.open("xb")
        if fcntl is None:
            return stream, path
        with contextlib.suppress(OSError):  # a disk without locks: nothing is taken for abandoned there either
            fcntl.flock(stream, fcntl.LOCK_EX)
        if path.exists():
            return stream, path
        stream.close()  # taken for abandoned before it was locked


def remove_abandoned(files: Iterable[Path]) -> None:
    """Remove those files that no process holds open as ``create_locked`` left them."""
    fcntl = _unix()
    for file in files if fcntl is not None else ():
        with contextlib.suppress(OSError):
            handle = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink()
            finally:
                os.close(handle)


@contextlib.contextmanager
def _held(lock: Path, refusal: str | None) -> Iterator[None]:
    held = FileLock(lock)
    try:
        held.acquire(timeout=0 if refusal else -1)
    except Timeout as error:
        raise InputError(refusal or "") from error
    try:
        yield
    finally:
        held.release()
