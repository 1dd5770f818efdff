"""The seconds that each step of a long job takes."""

from __future__ import annotations

import time

from lmmprune.progress import Progress


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

    @property
    def elapsed(self) -> float:
        """Seconds since the job began."""
        return time.perf_counter() - self._started

    def seconds(self) -> dict[str, float]:
        """Return how long each step took, until the next one began."""
        times = [*self._begun.values(), time.perf_counter()]
        return {what: round(times[i + 1] - times[i], 3) for i, what in enumerate(self._begun)}
