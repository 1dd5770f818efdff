"""How far long work is, on stderr: bars on a terminal, and a line now and then where stderr is a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Container, Iterator
from typing import TYPE_CHECKING, Any

from lmmprune.compiler.cli.output import human_bytes, note

if TYPE_CHECKING:
    from rich.progress import Progress, Task, TaskID

LINE_SECONDS = 30.0
"""A log gets no line more often, so that short work leaves none."""

SPEED_SECONDS = 600.0
"""How far back steps count for the time left: a layer of a large model over many samples takes a minute."""


def progress() -> Progress:
    """Return a progress bar that disappears when it is done; in a log it is a line every ``LINE_SECONDS``.

    A task with the field ``bytes`` set shows how much was written and how fast, the others how many of how many.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            if not task.fields.get("bytes"):
                return MofNCompleteColumn().render(task)
            speed = f" {human_bytes(task.speed)}/s" if task.speed else ""
            return Text.assemble(DownloadColumn(binary_units=True).render(task), speed)

    class Log(Progress):
        """Lines instead of bars."""

        def __init__(self) -> None:
            super().__init__(disable=True, speed_estimate_period=SPEED_SECONDS)
            self._told = time.monotonic()

        def update(self, task_id: TaskID, **changes: Any) -> None:
            super().update(task_id, **changes)
            if time.monotonic() - self._told >= LINE_SECONDS:
                self._told = time.monotonic()
                note(line(self._tasks[task_id]))

    if not sys.stderr.isatty():
        return Log()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        Amount(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        speed_estimate_period=SPEED_SECONDS,
        transient=True,
    )


def line(task: Task) -> str:
    """Return what a bar shows as one line of text."""
    if task.total is None:
        return task.description
    if task.fields.get("bytes"):
        amount = f"{human_bytes(task.completed)} of {human_bytes(task.total)}"
    else:
        amount = f"{task.completed:.0f} of {task.total:.0f}"
    if task.fields.get("bytes") and task.speed:
        amount += f", {human_bytes(task.speed)}/s"
    left = task.time_remaining
    return f"{task.description}: {amount}" + (f", about {_duration(left)} left" if left else "")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


@contextlib.contextmanager
def steps(streams: Container[str] = ()) -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that shows a bar per named step: its name, what is done of it, and how much there is.

    Args:
        streams: Steps that count bytes.
    """
    with progress() as bar:
        tasks: dict[str, TaskID] = {}

        def step(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=of, bytes=what in streams)
            bar.update(tasks[what], completed=done, total=of)

        yield step


@contextlib.contextmanager
def phases() -> Iterator[Callable[[str, int, int], None]]:
    """Give such a function for steps that lie inside of each other: one bar, of the one that was named last."""
    with progress() as bar:
        task = bar.add_task("", total=None, visible=False)
        now = ""

        def step(what: str, done: int, of: int) -> None:
            nonlocal now
            if what != now:
                now = what
                bar.reset(task)  # its speed isn't that of the phase before
            bar.update(task, description=what, completed=done, total=of, visible=True)

        yield step
