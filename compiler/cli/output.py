"""What the commands share for printing: ``--json``, tables on stdout, messages and progress bars on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """Add ``--json`` to a command; it arrives as the argument ``as_json``."""
    decorated: F = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")(function)
    return decorated


def print_json(data: Any) -> None:
    """Print a JSON document on stdout; NaN and infinity, which JSON doesn't have, are a bug of the caller."""
    click.echo(json.dumps(data, indent=2, allow_nan=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> Table:
    """Return a table: the first column is text on the left, the others are aligned on the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    result = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        result.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in rows:
        result.add_row(*(Text(cell) for cell in row))
    return result


def show(*objects: Any) -> None:
    """Print rich objects or plain text on stdout; a line is never cut when stdout is a file or a pipe."""
    from rich.console import Console
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    for item in objects:
        console.print(Text(item) if isinstance(item, str) else item, soft_wrap=isinstance(item, str))


def note(message: str) -> None:
    """Print a message for the person at the terminal on stderr."""
    click.echo(message, err=True)


def progress() -> Progress:
    """Return a progress bar on stderr that disappears when it is done; it is silent when stderr isn't a terminal.

    A task with the field ``bytes`` set shows how much was written and how fast, the others how many of how many.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            if not task.fields.get("bytes"):
                return MofNCompleteColumn().render(task)
            written, speed = DownloadColumn(binary_units=True), TransferSpeedColumn()
            return Text.assemble(written.render(task), " ", speed.render(task))

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        Amount(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


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

        def step(what: str, done: int, of: int) -> None:
            bar.update(task, description=what, completed=done, total=of, visible=True)

        yield step


def human_bytes(count: float) -> str:
    """Return bytes as text with a binary unit: ``1536`` is ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def human_si(count: float, unit: str = "", *, digits: int = 2) -> str:
    """Return a count with a decimal prefix, as papers print costs: ``8.45e12`` is ``8.45 T``."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.{digits}f} {prefix}{unit}"
    return f"{count:.0f} {unit}".rstrip()
