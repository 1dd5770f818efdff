"""What the commands share for reading their options."""

from __future__ import annotations

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
