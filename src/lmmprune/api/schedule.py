"""A schedule as callers give it: a mapping or a file, in place of a number of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from lmmprune.compiler.export.values import Schedule, Tokens
from lmmprune.errors import InputError


def schedule_of(given: Mapping[str, int] | str | PathLike[str], tokens: Tokens | None) -> Schedule:
    """Return the schedule.

    Raises:
        InputError: A number of tokens is given, too, or the file holds no schedule.
    """
    if tokens is not None:
        raise InputError("'tokens' and 'schedule' exclude each other: give one")
    return Schedule(dict(given)) if isinstance(given, Mapping) else Schedule.read(Path(given))
