"""Options from a file and from the environment: the command line beats the environment, which beats the file.

``--config export.toml`` is one table of option names; what may be repeated takes one value or a list, a switch
true or false::

    model = "llava-1.5-7b"
    ratio = 0.5
    int8 = true
    smooth = false
    set = ["shallow_layer=3"]

``LMMPRUNE_EXPORT_RATIO=0.5`` is ``--ratio 0.5`` of ``lmmprune export``; what may be repeated is separated by spaces.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from lmmprune.errors import InputError, suggestion

CONFIG = "lmmprune.config"
"""Where a context's ``meta`` says which file was read."""

_ITSELF = "config"  # a file doesn't name another one


def remember_config(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Take a file's options as what the command falls back to; for ``callback=`` of an eager option.

    Raises:
        InputError: The file, or the environment, names what the command doesn't have.
    """
    if ctx.resilient_parsing:
        return value
    check_environment(ctx.command, os.environ)
    if value is not None:
        ctx.default_map = read_options(Path(value), ctx.command)
        ctx.meta[CONFIG] = value
    return value


def set_variables(command: click.Command, name: str) -> None:
    """Let each option of a command be given by a variable of the environment, ``LMMPRUNE_<COMMAND>_<OPTION>``."""
    for key, option in options_of(command).items():
        option.envvar = f"LMMPRUNE_{name}_{key}".upper().replace("-", "_")


def check_environment(command: click.Command, environment: Mapping[str, str]) -> None:
    """Refuse variables that look as if they were for a command and aren't.

    Raises:
        InputError: One is set.
    """
    known = {str(option.envvar) for option in options_of(command).values() if option.envvar}
    prefix = f"LMMPRUNE_{command.name}_".upper()
    for variable in sorted(environment):
        if variable.startswith(prefix) and variable not in known:
            raise InputError(f"{variable} is set, and '{command.name}' has no such option{suggestion(variable, known)}")


def read_options(path: Path, command: click.Command) -> dict[str, Any]:
    """Return what a file says, by parameter name as click's ``default_map`` wants it.

    Args:
        path: The TOML file.
        command: Whose options they are.

    Raises:
        InputError: It can't be read, names an option that isn't there, or gives one a value of another kind.
    """
    known = {key: option for key, option in options_of(command).items() if key != _ITSELF}
    found = {}
    for key, value in _load(path).items():
        if key not in known:
            raise InputError(f"'{path}': '{command.name}' has no option '{key}'{suggestion(key, known)}")
        option = known[key]
        found[str(option.name)] = _value(f"'{path}': {key}", option, value)
    return found


def options_of(command: click.Command) -> dict[str, click.Option]:
    """Return a command's options by their long names."""
    options = [one for one in command.params if isinstance(one, click.Option)]
    return {max(one.opts, key=len).lstrip("-"): one for one in options}


def _load(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        loaded: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path}: it can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"--config {path}: it isn't TOML ({reason})") from error
    return loaded


def _value(where: str, option: click.Option, value: Any) -> Any:
    """Return a value as click converts it: as text, but for switches and lists."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise InputError(f"{where} = {_shown(value)}: expected true or false")
        return value
    listed = str(option.metavar).endswith(",..")
    if option.multiple or (listed and isinstance(value, list)):
        value = [value] if option.multiple and _single(value) else value
        if not (isinstance(value, list) and all(map(_single, value))):
            raise InputError(f"{where} = {_shown(value)}: expected a list, such as {_sample(option)}")
        return [str(one) for one in value] if option.multiple else ",".join(map(str, value))
    if not _single(value):
        raise InputError(f"{where} = {_shown(value)}: expected one value")
    return str(value)


def _shown(value: Any) -> str:
    """Return a value about as the file has it."""
    return (
        str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, (str, list)) else str(value)
    )


def _single(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _sample(option: click.Option) -> str:
    return '["a", "b"]' if option.metavar is None else f'["{option.metavar}"]'
