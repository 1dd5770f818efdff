"""Kill a process before each of its calls that changes the disk, one after the other."""

from __future__ import annotations

import os
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
_FAILED = 99


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


def _killed(action: Callable[[], object], below: Path, number: int) -> bool:
    child = os.fork()
    if child == 0:
        _die_at(number, os.fspath(below))
        try:
            action()
        except BaseException as error:  # noqa: BLE001  # a child must not go on as a second pytest
            os.write(2, f"the action failed: {type(error).__name__}: {error}\n".encode())
            os._exit(_FAILED)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert os.waitstatus_to_exitcode(status) == 0, "the action fails without being killed"
    return False


def _die_at(number: int, below: str) -> None:
    left = number

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if not (event in _CHANGES or (event == "open" and arguments[2] & _WRITES)):
            return
        name = arguments[0]
        # Names inside of a directory that is open, as `rmtree` removes them, are of our own doing too.
        inside = isinstance(name, str | bytes | os.PathLike) and os.fsdecode(name).startswith(below)
        if not inside and not (event in ("os.remove", "os.rmdir") and arguments[1] != -1):
            return
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    sys.addaudithook(count)
