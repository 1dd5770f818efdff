"""How long work says how far it is: a function takes the step's name, what is done of it, and how much there is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0: that isn't known)."""


def silent(what: str, done: int, of: int) -> None:
    """Say nothing: what stands where nobody wants to know."""


@contextlib.contextmanager
def step(progress: Progress, what: str) -> Iterator[None]:
    """Say that a step runs, and that it is done when the block ends; a block that fails isn't done.

    Args:
        progress: Whom to tell.
        what: The step's name.
    """
    progress(what, 0, 1)
    yield
    progress(what, 1, 1)


def counting(progress: Progress, total: int) -> Callable[[str], None]:
    """Return what reports one more of ``total`` steps each time that it is called with a description."""
    done = 0

    def step(what: str) -> None:
        nonlocal done
        done += 1
        progress(what, done, total)

    return step
