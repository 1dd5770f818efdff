"""Limits on what is read from outside: whole numbers in a range, JSON that isn't larger or deeper than ours ever is."""

from __future__ import annotations

import json
import math
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

MOST_BYTES = 256 * 2**20
"""Of one JSON file: tokenizers of the largest vocabularies have 40 MiB."""
MOST_DEPTH = 64
"""Of lists and objects inside of each other."""
MOST_DIGITS = 40
"""Of a whole number: transformers writes 1e30, which has 31, where it means that there is no limit."""
MOST_LETTERS = 4096
"""Of a path: no system takes longer ones."""

MOST_THREADS = 1024
"""Within an operator: more take longer to start than anything that they would do."""

_WHOLE = re.compile(r"[+-]?[0-9]+")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def bounded(value: object, name: str, low: int, high: int) -> int:
    """Return a whole number of a range.

    Args:
        value: A number, or its text in the digits 0 to 9; ``True`` isn't one, nor is 2.0.
        name: What it is, for the message.
        low: The smallest that makes sense.
        high: The largest.

    Raises:
        ValueError: It is something else, or outside.
    """
    if isinstance(value, str) and _WHOLE.fullmatch(value) and len(value) <= MOST_DIGITS:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    raise ValueError(f"{name} is {shortened(value)}: expected a whole number in {low}..{high}")


def shortened(value: object) -> str:
    """Return what a message shows of a value: its beginning, if it is long."""
    # Python refuses to write numbers of more than 4,300 digits.
    if isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
        return f"a number of more than {MOST_DIGITS} digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def parse_json(text: str | bytes, *, finite: bool = False, once: bool = False) -> Any:
    """Return what a JSON text says.

    Args:
        text: The text.
        finite: Whether NaN and infinite numbers, which JSON doesn't have and Python writes, are refused.
        once: Whether a name that stands twice in an object is refused; else the last one counts.

    Raises:
        ValueError: It isn't JSON, is nested deeper or has longer numbers than anything that makes sense, or holds half
            a character.
    """
    if isinstance(text, bytes):
        text = text.decode()
    hooks: dict[str, Any] = {"parse_float": _finite, "parse_constant": _no_constant} if finite else {}
    if once:
        hooks["object_pairs_hook"] = _once
    try:
        found = json.loads(text, parse_int=_integer, **hooks)
    except RecursionError as error:
        raise ValueError(f"it is nested more than {MOST_DEPTH} deep") from error
    _check_depth(found)
    if _HALF.search(text):
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = repr(error.object[error.start])
            raise ValueError(f"it holds half a character, {half}, which isn't valid UTF-8") from error
    return found


def read_json(path: Path, *, finite: bool = False, once: bool = False, most: int = MOST_BYTES) -> Any:
    """Return what a JSON file says.

    Args:
        path: A regular file.
        finite: As for ``parse_json``.
        once: Same.
        most: Bytes that it may have.

    Raises:
        OSError: It can't be read.
        ValueError: As for ``parse_json``; it is no file (a pipe would never end), too large, or not UTF-8.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")
    if found.st_size > most:
        raise ValueError(f"it has {found.st_size} bytes, expected {most} at most")
    return parse_json(path.read_bytes(), finite=finite, once=once)


def is_file(path: Path) -> bool:
    """Return whether a path is one of a file; also False for names that no system takes."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_directory(path: Path) -> bool:
    """Return whether a path is one of a directory; also False for names that no system takes."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it holds a number of {len(digits)} digits, expected {MOST_DIGITS} at most")
    return int(digits)


def _finite(digits: str) -> float:
    found = float(digits)
    if not math.isfinite(found):
        raise ValueError(f"it holds the number {shortened(digits)}, which is too large")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is no number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{shortened(name)} stands in it twice")
        found[name] = value
    return found


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        rows = [one for one in level if isinstance(one, list | dict)]
        if not rows:
            return
        level = [child for row in rows for child in (row.values() if isinstance(row, dict) else row)]
    raise ValueError(f"it is nested more than {MOST_DEPTH} deep")
