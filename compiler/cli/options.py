"""What the commands share for reading their options."""

from __future__ import annotations

import re

import click

from lmmprune.errors import InputError


def set_options(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return the ``NAME=VALUE`` of every ``--set``.

    Raises:
        InputError: One has no ``=``.
    """
    for pair in pairs:
        if "=" not in pair:
            raise InputError(f"--set {pair}: expected name=value")
    return dict(pair.split("=", 1) for pair in pairs)


def size(value: str) -> int:
    """Return a size such as ``8GiB``, ``512MiB`` or ``1000000`` as bytes; for ``type=`` of an option.

    Raises:
        click.BadParameter: It isn't one, or is 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])i?B?|B)?", value.strip(), re.IGNORECASE)
    power = " KMGT".index(match[2].upper()) if match and match[2] else 0
    # People and vendors write GB for what the system counts in GiB: 8GB is 8GiB here.
    found = int(float(match[1]) * 1024**power) if match else 0
    if found <= 0:
        raise click.BadParameter(f"'{value}' isn't a size: write 8GiB, 512MiB or a number of bytes")
    return found
