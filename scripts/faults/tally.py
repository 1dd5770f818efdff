"""What a section of the fault campaign counts: a row per kind of fault, and the first examples of what went wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

FAULTS = ("half states", "reads outside", "tracebacks", "silent successes")
"""What must not happen, in the order of the table's columns."""
HALF, OUTSIDE, TRACEBACK, SILENT = FAULTS
_EXAMPLES = 5


@dataclass(kw_only=True)
class Row:
    """One kind of fault: how often it was tried, and what came of it.

    Attributes:
        section: The section's name.
        kind: What was damaged, in words.
        tries: How often.
        found: One of ``FAULTS`` -> how often it happened.
        examples: What the first of them were: enough to do it again.
    """

    section: str
    kind: str
    tries: int = 0
    found: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def count(self, fault: str | None, example: str = "") -> None:
        """Count one try, and what it led to; None: nothing that must not happen."""
        self.tries += 1
        if fault is None:
            return
        self.found[fault] = self.found.get(fault, 0) + 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{fault}: {' '.join(example.split())[:300]}")


class Rows:
    """The rows of a section, made as their kinds come up."""

    def __init__(self, section: str) -> None:
        self._section = section
        self._rows: dict[str, Row] = {}

    def __getitem__(self, kind: str) -> Row:
        return self._rows.setdefault(kind, Row(section=self._section, kind=kind))

    def list(self) -> list[Row]:
        """Return the rows in the order in which they came up."""
        return list(self._rows.values())


def while_time_lasts(seconds: float, *, at_least: int) -> Iterator[int]:
    """Count up until the time is over, but to ``at_least`` whatever it takes."""
    end, number = time.monotonic() + seconds, 0
    while number < at_least or time.monotonic() < end:
        yield number
        number += 1
