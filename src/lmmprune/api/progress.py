"""What the functions that take long report while they run."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0: that isn't known)."""


def silent(what: str, done: int, of: int) -> None:
    """Report nothing."""


def counting(progress: Progress, total: int) -> Callable[[str], None]:
    """Return what reports one more of ``total`` steps each time that it is called with a description."""
    done = 0

    def step(what: str) -> None:
        nonlocal done
        done += 1
        progress(what, done, total)

    return step
