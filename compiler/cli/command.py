"""Commands whose ``--help`` shows options in groups and an example, and what every command takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from lmmprune.compiler.cli.verbosity import remember_quiet, remember_verbose

F = TypeVar("F", bound=Callable[..., Any])

GENERAL = "General"
"""The last group: what an option without one belongs to."""


class Argument(click.Argument):
    """An argument, checked before it is converted."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Convert what was given."""
        _check(self, ctx, value)
        return super().type_cast_value(ctx, value)


class Option(click.Option):
    """An option that belongs to a group of ``--help``, checked before it is converted."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Convert what was given."""
        _check(self, ctx, value)
        return super().type_cast_value(ctx, value)

    def __init__(self, *names: Any, group: str = GENERAL, **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self.group = group
        for kind, letter in ((click.INT, "N"), (click.FLOAT, "X")):
            if self.metavar is None and isinstance(self.type, type(kind)):
                self.metavar = letter  # not INTEGER RANGE


class Command(click.Command):
    """A command with groups of options and an example.

    Attributes:
        example: A line to copy.
    """

    def __init__(self, *given: Any, example: str | None = None, **attributes: Any) -> None:
        super().__init__(*given, **attributes)
        self.example = example

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group in the order in which they are declared, the general ones last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if not isinstance(parameter, click.Option):
                continue  # arguments are named by the usage line and the text
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "group", GENERAL), []).append(record)
        general = groups.pop(GENERAL, [])
        # All of them begin their texts in the same column.
        widest = max((len(names) for rows in (general, *groups.values()) for names, _ in rows), default=0)
        for title, rows in [*groups.items(), (GENERAL if groups else "Options", general)]:
            if rows:
                with formatter.section(title):
                    formatter.write_dl([(names.ljust(min(widest, 30)), text) for names, text in rows])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example."""
        if self.example is not None:
            with formatter.section("Example"):
                formatter.write("".join(f"{' ' * formatter.current_indent}{line}\n" for line in self.lines()))
        super().format_epilog(ctx, formatter)

    def lines(self) -> list[str]:
        """Return the lines of the example."""
        return (self.example or "").splitlines()


def _check(parameter: click.Parameter, ctx: click.Context, value: Any) -> None:
    from lmmprune.compiler.cli.given_values import check_given

    with click.core.augment_usage_errors(ctx, param=parameter):
        check_given(parameter.type, value)


def argument(name: str, **attributes: Any) -> Callable[[F], F]:
    """Add an argument to a command, as ``click.argument`` does."""
    return click.argument(name, cls=Argument, **attributes)


def option(*names: str, group: str = GENERAL, **attributes: Any) -> Callable[[F], F]:
    """Add an option to a command, as ``click.option`` does.

    Args:
        names: As click takes them.
        group: Title of the group that ``--help`` shows it in.
        attributes: As click takes them.
    """
    return click.option(*names, cls=Option, group=group, **attributes)


def general_options() -> list[click.Option]:
    """Return the options of every command."""
    from lmmprune.compiler.cli.config import remember_config

    return [
        Option(
            ["--config"],
            type=click.Path(dir_okay=False),
            metavar="FILE.toml",
            is_eager=True,
            expose_value=False,
            callback=remember_config,
            help="Take options from this file: name = value.",
        ),
        Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            callback=remember_verbose,
            help="Show the traceback behind an error.",
        ),
        Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=remember_quiet,
            help="Leave out progress and notes; warnings, errors and results stay.",
        ),
    ]
