"""What the commands share for printing: ``--json``, tables on stdout, messages on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TextIO, TypeVar

import click

from lmmprune.compiler.cli.command import option
from lmmprune.compiler.cli.verbosity import WANTED
from lmmprune.errors import LmmpruneWarning, one_line

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """Add ``--json`` to a command; it arrives as the argument ``as_json``."""
    return option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")(function)


def print_json(data: Any) -> None:
    """Print a JSON document on stdout; NaN and infinity, which JSON doesn't have, are a bug of the caller."""
    click.echo(json.dumps(data, indent=2, allow_nan=False))


def show(*objects: Any) -> None:
    """Print rich objects or plain text on stdout; a line is never cut when stdout is a file or a pipe."""
    from rich.console import Console
    from rich.text import Text

    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else 160, highlight=False)
    for item in objects:
        if isinstance(item, str):
            # A terminal would break the line in the middle of a word.
            wrapper = textwrap.TextWrapper(console.width, break_long_words=False, break_on_hyphens=False)
            wrapped = map(wrapper.fill, item.split("\n"))
            console.print(Text("\n".join(wrapped) if terminal else item), soft_wrap=True)
        else:
            console.print(item)


def note(message: str) -> None:
    """Print a message for the person at the terminal on stderr, unless ``-q`` was given."""
    if not WANTED.quiet:
        click.echo(message, err=True)


def warn(message: str) -> None:
    """Print what the person at the terminal should not overlook on stderr, in one line."""
    click.echo(f"warning: {one_line(message)}", err=True)


@contextlib.contextmanager
def one_line_warnings() -> Iterator[None]:
    """Print the first of our own warnings as a note: a thousand pictures of one kind are one remark."""
    said: list[str] = []
    with warnings.catch_warnings():
        before = warnings.showwarning

        def show_warning(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, LmmpruneWarning):
                before(message, category, filename, lineno, file, line)
            elif not said:
                said.append(str(message))
                warn(f"{message} (others like it aren't named)")

        warnings.simplefilter("always", LmmpruneWarning)
        warnings.showwarning = show_warning
        yield
