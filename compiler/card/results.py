"""Read what ``eval``, ``compare`` and ``bench`` printed with ``--json``, and find a bundle in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.errors import InputError
from lmmprune.limits import read_json

Given = Path | Mapping[str, Any]
"""A file with a command's JSON, or what it says."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One measurement of a bundle.

    Attributes:
        lines: Markdown.
        covers: What is measured: ``answers``, ``faithfulness``, ``time``, ``memory``, and ``format NAME``.
    """

    lines: Sequence[str]
    covers: frozenset[str]


def read(given: Given, command: str) -> tuple[str, Mapping[str, Any]]:
    """Return how a result is called in messages, and what it says.

    Args:
        given: The file, or its content.
        command: Which command made it.

    Raises:
        InputError: The file can't be read, or holds no object.
    """
    if not isinstance(given, Path):
        return f"what '{command}' measured", given
    try:
        found = read_json(given)
    except (OSError, ValueError) as error:
        raise InputError(f"'{given}' can't be read ({error}): give what 'lmmprune {command} --json' printed") from error
    if not isinstance(found, dict):
        raise InputError(f"'{given}' holds no object: give what 'lmmprune {command} --json' printed")
    return f"'{given}'", found


@contextlib.contextmanager
def printed_by(command: str, name: str) -> Iterator[None]:
    """Refuse a result in which something is missing or of another type.

    Raises:
        InputError: It is.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"{name} isn't what 'lmmprune {command} --json' prints ({type(error).__name__}: {error})"
        ) from error


def own(rows: Sequence[Mapping[str, Any]], bundle: Bundle, name: str) -> Mapping[str, Any]:
    """Return the row of a bundle: by the checksum of its files, wherever it lay.

    Raises:
        InputError: There is none; the message says what was measured.
    """
    for row in rows:
        if row.get("sha256") == bundle.sha256:
            return row
    seen = ", ".join(Path(str(row.get("path") or row.get("bundle") or "?")).name for row in rows)
    if not all(row.get("sha256") for row in rows):
        raise InputError(f"{name} doesn't say by checksums what was measured ({seen}): measure again with this version")
    raise InputError(
        f"{name} says nothing of '{bundle.path}' (SHA-256 {bundle.sha256[:12]}), only of {seen}: was it exported again"
        " since?"
    )


def place(machine: Mapping[str, Any]) -> str:
    """Return what something was measured on, in words."""
    gpus = "".join(f", {gpu['name']}" for gpu in machine.get("gpus", ()))
    backends = ", ".join(f"{name} {version}" for name, version in machine.get("backends", {}).items())
    return f"{machine['processor']}, {machine['cores']} cores{gpus}, {backends}"
