"""How far long work is, on stderr: bars on a terminal, and a line now and then where stderr is a log."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Any

from lmmprune.compiler.cli.output import note
from lmmprune.compiler.cli.verbosity import WANTED
from lmmprune.progress import Progress as Told
from lmmprune.units import human_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task, TaskID
    from rich.progress_bar import ProgressBar

LINE_SECONDS = 30.0
"""A log gets no line more often, so that short work leaves none."""

SPEED_SECONDS = 600.0
"""How far back steps count for the time left: a layer of a large model over many samples takes a minute."""


def progress() -> Progress:
    """Return a progress bar that disappears when it is done; in a log it is a line every ``LINE_SECONDS``.

    A task with the field ``bytes`` set shows how much was written and how fast, one of a single step only how long it
    takes, and the others how many of how many. With ``-q`` nothing is shown.
    """
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class Bar(BarColumn):
        def render(self, task: Task) -> ProgressBar:
            bar = super().render(task)
            # A single step is done or not: in between, the bar moves without saying how far it is.
            bar.pulse = _is_single(task) and not task.finished
            return bar

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            if _is_single(task):
                return Text("")
            if not task.fields.get("bytes"):
                return MofNCompleteColumn().render(task)
            speed = f" {human_bytes(task.speed)}/s" if task.speed else ""
            return Text.assemble(DownloadColumn(binary_units=True).render(task), speed)

    class Time(ProgressColumn):
        def render(self, task: Task) -> Text:
            passed = task.finished or _is_single(task)
            return (TimeElapsedColumn() if passed else TimeRemainingColumn()).render(task)

    class Shown(Progress):
        """Bars that are full in the last frame of work that didn't fail."""

        def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
            if error is None:
                for task in self.tasks:
                    Progress.update(self, task.id, total=task.total or 1, completed=task.total or 1)
            super().__exit__(kind, error, trace)

    class Log(Shown):
        """Lines instead of bars."""

        def __init__(self) -> None:
            super().__init__(disable=True, speed_estimate_period=SPEED_SECONDS)
            self._told = time.monotonic()

        def update(self, task_id: TaskID, **changes: Any) -> None:
            super().update(task_id, **changes)
            if time.monotonic() - self._told >= LINE_SECONDS:
                self._told = time.monotonic()
                note(line(self._tasks[task_id]))

    if not is_interactive() or WANTED.quiet:
        return Log()
    return Shown(
        TextColumn("{task.description}"),
        Bar(bar_width=20),
        Amount(table_column=Column(no_wrap=True)),
        Time(table_column=Column(no_wrap=True)),
        console=_console(),
        speed_estimate_period=SPEED_SECONDS,
        transient=True,
    )


def is_interactive() -> bool:
    """Return whether stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _is_single(task: Task) -> bool:
    return task.total in (None, 1) and not task.fields.get("bytes")


def line(task: Task) -> str:
    """Return what a bar shows as one line of text."""
    if _is_single(task):
        return task.description
    if task.fields.get("bytes"):
        amount = f"{human_bytes(task.completed)} of {human_bytes(task.total or 0)}"
    else:
        amount = f"{task.completed:.0f} of {task.total:.0f}"
    if task.fields.get("bytes") and task.speed:
        amount += f", {human_bytes(task.speed)}/s"
    left = task.time_remaining
    return f"{task.description}: {amount}" + (f", about {_duration(left)} left" if left else "")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


@contextlib.contextmanager
def steps(streams: Container[str] = ()) -> Iterator[Told]:
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
def phases() -> Iterator[Told]:
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
