"""Give a directory the name of another in one step, where the system can; where it can't, in steps that are mended."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
# What a kernel or a file system says that doesn't know the call.
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def put_in_place(temporary: Path, destination: Path) -> None:
    """Rename a directory to a name that may be another's, which has the temporary name afterwards, or is gone.

    Whenever the process is killed, the old or the new one is under the name, or ``settle`` brings the old one back.

    Raises:
        OSError: It can't be renamed; all is as it was.
    """
    if not os.path.lexists(destination):
        os.rename(temporary, destination)
    elif not exchange(temporary, destination):
        _in_steps(temporary, destination)


def exchange(one: Path, other: Path) -> bool:
    """Swap the names of two directories in one step; return False where the system can't.

    Raises:
        OSError: They can't be renamed.
    """
    call = _renameat2()
    if call is None:
        return False
    sys.audit("lmmprune.exchange", os.fspath(one), os.fspath(other))
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), os.fspath(other))


def settle(destination: Path) -> None:
    """Undo or finish what a killed process left of ``_in_steps``; nobody else may be writing."""
    old = replaced(destination)
    if not os.path.lexists(old):
        return
    if os.path.lexists(destination):
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(old, destination)


def replaced(destination: Path) -> Path:
    """Return what a directory is called while another takes its name."""
    return destination.with_name(f".{destination.name}.lmmprune-old")


def _in_steps(temporary: Path, destination: Path) -> None:
    old = replaced(destination)
    os.rename(destination, old)
    try:
        os.rename(temporary, destination)
    except BaseException:
        os.rename(old, destination)
        raise
    with contextlib.suppress(OSError):
        os.rename(old, temporary)


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    """Return the system's call, None where there is none (before glibc 2.28, and not on Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return call
