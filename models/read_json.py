"""Read one of a checkpoint's JSON files, with an error in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmmprune import limits
from lmmprune.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        ModelError: It can't be read, isn't JSON within its limits, or holds something else.
    """
    try:
        raw = limits.read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"'{path}' can't be read ({error})") from error
    if not isinstance(raw, dict):
        raise ModelError(f"'{path}' holds {type(raw).__name__}, expected an object")
    return raw


def read_json_if_there(path: Path) -> dict[str, Any]:
    """Return what ``read_json`` does, or nothing where there is no such file."""
    return read_json(path) if path.is_file() else {}
