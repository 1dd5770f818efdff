"""Pieces of Markdown: tables, lists, and words of others that must not become markup."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lmmprune.errors import one_line

_MARKUP = re.compile(r"([\\`*\[\]<>#|])")
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")
_LONGEST = 300  # letters of a value that somebody else wrote


def plain(value: object) -> str:
    """Return a value as one line of text without markup."""
    return _MARKUP.sub(r"\\\1", one_line(str(value), _LONGEST))


def paper(reference: str) -> str:
    """Return a reference with links to its pages on arXiv."""
    return _ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", plain(reference))


def code(value: object) -> str:
    """Return a value as code in a line."""
    return f"`{one_line(str(value), _LONGEST).replace('`', chr(39)).replace('|', '/')}`"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table; cells are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


def bullets(lines: Sequence[str]) -> list[str]:
    """Return a list."""
    return [*(f"* {line}" for line in lines), ""]


def number(value: float) -> str:
    """Return a number with four digits."""
    return f"{value:.4g}"


def percent(one: Mapping[str, Any]) -> tuple[str, str]:
    """Return a share that has an interval, and the interval, both in percent."""
    return f"{100 * one['value']:.1f} %", f"{100 * one['low']:.1f} .. {100 * one['high']:.1f}"


def signed(one: Mapping[str, Any], scale: float) -> str:
    """Return a difference with its interval."""
    return f"{scale * one['value']:+.1f} ({scale * one['low']:+.1f} .. {scale * one['high']:+.1f})"
