"""The seconds that each step of a long job takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from lmmprune.compiler.export.request import Progress


class StepClock:
    """Hands progress on, and takes the time at which each step begins."""

    def __init__(self, progress: Progress) -> None:
        """Wrap a function that is told of progress, and begin."""
        self._progress = progress
        self._started = time.perf_counter()
        self._begun: dict[str, float] = {}

    def report(self, what: str, done: int, of: int) -> None:
        """Hand on."""
        self._begun.setdefault(what, time.perf_counter())
        self._progress(what, done, of)

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Report a step that has no parts: its begin and its end."""
        self.report(what, 0, 1)
        yield
        self.report(what, 1, 1)

    @property
    def elapsed(self) -> float:
        """Seconds since the job began."""
        return time.perf_counter() - self._started

    def seconds(self) -> dict[str, float]:
        """Return how long each step took, until the next one began."""
        times = [*self._begun.values(), time.perf_counter()]
        return {what: round(times[i + 1] - times[i], 3) for i, what in enumerate(self._begun)}
