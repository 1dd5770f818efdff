"""Kill a process before each of its calls that changes the disk, and within each of its writes, one after the other."""

from __future__ import annotations

import functools
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Python tells of each before it happens.
_CHANGES = {
    *("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
    "lmmprune.exchange",
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_FAILED, _NEVER = 99, 98

BYTES = (1, 16, 256, 4096)
"""Bytes of a file that are written when its writer is killed: one or two of them lie within every file."""


def killed_at_every_change(action: Callable[[], object], below: Path) -> Iterator[int]:
    """Run an action in a child that kills itself before its first change, then before its second, and so on.

    Args:
        action: What to do. Whoever iterates brings the disk back to how it was before.
        below: Only changes below this directory count.

    Yields:
        The number of the change, while the disk is as the killed process left it; at last -1, when none is left to be
        killed at.
    """
    number = 0
    while _killed(action, below, number):
        yield number
        number += 1
    yield -1


def killed_within_every_write(
    action: Callable[[], object], below: Path, sizes: tuple[int, ...] = BYTES
) -> Iterator[tuple[int, int]]:
    """Run an action in a child that the system kills when a file that it writes has so many bytes: file by file.

    Args:
        action: What to do. Whoever iterates brings the disk back to how it was before.
        below: Only files below this directory count.
        sizes: Bytes; a file that ends before them is passed over.

    Yields:
        The number of the file and its bytes, while the disk is as the killed process left it.
    """
    for size in sizes:
        number = 0
        while (code := _ended(action, functools.partial(_die_within, number, size, os.fspath(below)))) != _NEVER:
            if code == -signal.SIGXFSZ:
                yield number, size
            number += 1


def _killed(action: Callable[[], object], below: Path, number: int) -> bool:
    code = _ended(action, functools.partial(_die_at, number, os.fspath(below)))
    assert code in (0, -signal.SIGKILL)
    return code != 0


def _ended(action: Callable[[], object], arm: Callable[[], Callable[[], int]]) -> int:
    """Return how a child ended: by which signal (negative), or with what ``arm``'s function says at its end."""
    child = os.fork()
    if child == 0:
        said = arm()
        try:
            action()
        except BaseException as error:  # noqa: BLE001  # a child must not go on as a second pytest
            os.write(2, f"the action failed: {type(error).__name__}: {error}\n".encode())
            os._exit(_FAILED)
        os._exit(said())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code != _FAILED, "the action fails without being killed"
    return code


def _die_at(number: int, below: str) -> Callable[[], int]:
    left = number

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if not _changes(event, arguments, below):
            return
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    sys.addaudithook(count)
    return lambda: 0


def _die_within(number: int, size: int, below: str) -> Callable[[], int]:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    free = resource.getrlimit(resource.RLIMIT_FSIZE)
    left = number

    def limit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if not _changes(event, arguments, below):
            return
        # As on a disk that has room for so many: the system takes as many as fit, and kills at the next. Whatever comes
        # behind that file isn't limited any more.
        here = event == "open" and left == 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, free[1]) if here else free)
        left -= event == "open"

    sys.addaudithook(limit)
    return lambda: _NEVER if left >= 0 else 0


def _changes(event: str, arguments: tuple[Any, ...], below: str) -> bool:
    if not (event in _CHANGES or (event == "open" and arguments[2] & _WRITES)):
        return False
    name = arguments[0]
    # Names inside of a directory that is open, as `rmtree` removes them, are of our own doing too.
    inside = isinstance(name, str | bytes | os.PathLike) and os.fsdecode(name).startswith(below)
    return inside or (event in ("os.remove", "os.rmdir") and arguments[1] != -1)
