"""How much a command says beside its result: ``-v`` and ``-q``."""

from __future__ import annotations

from dataclasses import dataclass

import click


@dataclass
class Verbosity:
    """What was asked for.

    Attributes:
        traceback: Whether an error is shown with its traceback.
        quiet: Whether progress and notes are left out.
    """

    traceback: bool = False
    quiet: bool = False

    def reset(self) -> None:
        """Forget what an earlier command was asked for."""
        self.traceback = self.quiet = False


WANTED = Verbosity()


def remember_verbose(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    """Note that tracebacks are wanted; for ``callback=`` of an option."""
    WANTED.traceback = WANTED.traceback or value
    return value


def remember_quiet(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    """Note that progress and notes are not wanted; for ``callback=`` of an option."""
    WANTED.quiet = WANTED.quiet or value
    return value
