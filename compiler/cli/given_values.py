"""What is given to a command, before any of it is used: names that a system takes, numbers in a range."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from typing import Any

import click

from lmmprune.limits import MOST_DIGITS, MOST_LETTERS, shortened

_MOST = 2**63 - 1
_NAME = 255
"""Bytes of a name within a path."""
_WHOLE = re.compile(r"[+-]?[0-9]+")
_REAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def check_given(kind: click.ParamType[Any], value: Any) -> None:
    """Check what was typed for an option or an argument.

    Args:
        kind: Its type.
        value: The text, or the texts of one that may be repeated; defaults of other types are ours.

    Raises:
        click.BadParameter: It can't be meant.
    """
    for text in _texts(value):
        if "\0" in text:
            raise click.BadParameter(f"{shortened(text)} holds a NUL character: leave it out")
        try:
            os.fsencode(text)
        except UnicodeEncodeError as error:
            raise click.BadParameter(f"{shortened(text)} holds half a character: write it anew") from error
        if isinstance(kind, click.types.IntParamType):
            _check_number(text, _WHOLE, "a whole number")
        elif isinstance(kind, click.types.FloatParamType):
            _check_number(text, _REAL, "a number")
        elif isinstance(kind, click.Path):
            _check_path(text)


def _check_number(text: str, pattern: re.Pattern[str], what: str) -> None:
    """Python would take digits of other scripts, 1_000, and 'nan'."""
    number = float(text) if pattern.fullmatch(text) and len(text) <= MOST_DIGITS else math.inf
    if abs(number) > _MOST:
        raise click.BadParameter(f"{shortened(text)}: expected {what} in the digits 0 to 9, {_MOST} at most")


def _check_path(text: str) -> None:
    if len(os.fsencode(text)) >= MOST_LETTERS or any(len(os.fsencode(part)) > _NAME for part in text.split(os.sep)):
        raise click.BadParameter(f"{shortened(text)}: no system takes names of more than {_NAME} bytes")
    if not text:
        raise click.BadParameter("an empty name: give one")


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
