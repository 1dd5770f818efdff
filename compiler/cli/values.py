"""Texts of options as values: ``name=value``, sizes of memory, pairs of numbers."""

from __future__ import annotations

import re

import click

from lmmprune.errors import InputError

# Sizes are of memory: fewer bytes than this are a forgotten unit.
_LEAST = 2**20


def set_options(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return the ``NAME=VALUE`` of every ``--set``.

    Raises:
        InputError: One has no ``=``, or two set the same.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--set {pair}: expected name=value")
        if name in found:
            raise InputError(f"--set {name} is given as {found[name]} and as {value}, and one is taken: leave one out")
        found[name] = value
    return found


def size(value: str) -> int:
    """Return a size such as ``8GiB``, ``512MiB`` or ``2000000000`` as bytes; for ``type=`` of an option.

    Raises:
        click.BadParameter: It isn't one, is 0, or a bare number that is too small to be bytes.
    """
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*(?:([KMGT])i?B?|B)?", value.strip(), re.IGNORECASE)
    power = " KMGT".index(match[2].upper()) if match and match[2] else 0
    # People and vendors write GB for what the system counts in GiB: 8GB is 8GiB here.
    found = int(float(match[1]) * 1024**power) if match else 0
    # A fraction of a byte, or of an unnamed unit.
    if match is None or found <= 0 or (not match[2] and "." in match[1]):
        raise click.BadParameter(f"'{value}' isn't a size: write 8GiB, 512MiB or a number of bytes")
    if match[0].isdecimal() and found < _LEAST:
        unit = "GiB" if found <= 128 else "MiB" if found <= 2**17 else "B"
        raise click.BadParameter(f"'{value}' would be {found} bytes: write {match[0]}{unit} if that is meant")
    return found


def number_pair(option: str, text: str | None, *, single: bool = False) -> tuple[int, int] | None:
    """Return ``24x24`` as numbers, ``336`` as a square."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,8})(?:x([1-9][0-9]{0,8}))?", text)
    if match is None or not (single or match[2]):
        raise InputError(f"{option} {text}: expected {'a number, or ' * single}two numbers such as 24x24")
    return int(match[1]), int(match[2] or match[1])


def words_of(text: str) -> list[str]:
    """Return what stands between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers_of(option: str, text: str) -> list[float]:
    """Return numbers that are separated by commas.

    Raises:
        InputError: One isn't a number.
    """
    try:
        return [float(part) for part in words_of(text)]
    except ValueError as error:
        raise InputError(f"{option} {text}: expected numbers, separated by commas, such as 0.5,0.75") from error
