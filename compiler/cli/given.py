"""What was given, by command line, environment or file: nothing of it may be ignored, neither a value nor an option."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import click
from click.core import ParameterSource

from lmmprune.compiler.cli.config import CONFIG
from lmmprune.errors import InputError


def refuse_repeated(name: str | None, command: click.Command, ctx: click.Context, arguments: list[str]) -> None:
    """Refuse an option with one value that is given several times, of which click takes the last.

    Args:
        name: The name that the command is called by.
        command: The command.
        ctx: Its group's context.
        arguments: What stands behind its name.

    Raises:
        click.UsageError: An option is repeated.
    """
    own = click.Context(command, info_name=name, parent=ctx, **command.context_settings)
    try:
        _, _, order = command.make_parser(own).parse_args(list(arguments))
    except click.UsageError:
        return  # the command itself says it better
    if any({*parameter.opts} & {*own.help_option_names} for parameter in order):
        return
    for parameter, times in Counter(order).items():
        if times > 1 and isinstance(parameter, click.Option) and _single(parameter):
            names = "/".join([_name(parameter.opts), *parameter.secondary_opts])
            raise click.UsageError(f"{names} is given {times} times, and one is taken: leave the others out", ctx=own)


_ELSEWHERE = (ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)


def was_given(name: str) -> bool:
    """Say whether the option with this parameter name was given to the present command, wherever."""
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE or source in _ELSEWHERE


def refuse_ignored(useful: bool, why: str, *names: str) -> None:
    """Refuse options that were given and would change nothing.

    Args:
        useful: Whether they have an effect here.
        why: Goes behind the option's name: what it is for, and what to do.
        names: Their parameter names.

    Raises:
        InputError: One was given.
    """
    if useful:
        return
    ctx = click.get_current_context()
    for parameter in ctx.command.params:
        if parameter.name in names and was_given(parameter.name):
            off = parameter.secondary_opts and ctx.params.get(parameter.name) is False
            chosen = parameter.secondary_opts if off else parameter.opts
            raise InputError(f"{_name(chosen)}{_where(ctx, parameter)} {why}")


def _where(ctx: click.Context, parameter: click.Parameter) -> str:
    """Say where an option stands that isn't on the command line."""
    source = ctx.get_parameter_source(str(parameter.name))
    if source is ParameterSource.ENVIRONMENT:
        return f" (set by {parameter.envvar})"
    return f" (in '{ctx.meta[CONFIG]}')" if source is ParameterSource.DEFAULT_MAP else ""


def _single(option: click.Option) -> bool:
    """Say whether a second one would replace the first; a plain flag says the same twice."""
    return not option.multiple and not option.count and not (option.is_flag and not option.secondary_opts)


def _name(names: Sequence[str]) -> str:
    return max(names, key=len)
