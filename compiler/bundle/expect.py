"""Say in one line what a field of a manifest is and what it must be."""

from __future__ import annotations

from typing import Any

from lmmprune.limits import shortened


def expect(held: bool, field: str, found: object, expected: str) -> None:
    """Raise what a field is and what it must be, unless it is.

    Raises:
        ValueError: It isn't.
    """
    if not held:
        raise ValueError(f"{field} is {shortened(found)}: expected {expected}")


def one_of(field: str, found: object, known: Any) -> None:
    """Raise unless a field is one of some words.

    Raises:
        ValueError: It isn't.
    """
    expect(found in known, field, found, " or ".join(map(repr, known)))
