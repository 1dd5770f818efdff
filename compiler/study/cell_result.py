"""The result of one cell, as it lies on disk: figures, checks, every right or wrong answer; or why it was refused."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from lmmprune.compiler.compare.fidelity import Fidelity
from lmmprune.compiler.verify.verify import Check
from lmmprune.errors import BundleError
from lmmprune.limits import parse_json

_FORMAT = 3
_DIGITS = ("correct", "first_word")  # one digit per question


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What was measured of a cell.

    Attributes:
        name: The cell's name.
        refused: Why this cell can't be had; None if it can, and everything below is there.
        tokens_before: Visual tokens of the unpruned model.
        average_tokens: Visual tokens per decoder layer on average.
        schedule: Site -> tokens that leave it, in the data's order.
        dtype: Of the floating-point part.
        bytes: The graphs with their weights on disk.
        prefill_flops: Of the prefill.
        checks: What ``verify`` said.
        flops_before: Of the prefill of the unpruned model.
        correct: For every question in order, whether the whole answer is right, 1 or 0; where nobody knows, whether it
            is that of the unpruned model.
        first_word: The same of its first word; where nobody knows, of its first token.
        said: Every answer.
        fidelity: Where nobody knows right answers, how near each answer is to that of the unpruned model.
        seconds: Step -> how long it took.
        worker: The process that did it.
    """

    name: str
    refused: str | None = None
    tokens_before: int = 0
    average_tokens: float = 0.0
    schedule: dict[str, int] = dataclasses.field(default_factory=dict)
    dtype: str = ""
    bytes: int = 0
    prefill_flops: float = 0.0
    flops_before: float = 0.0
    checks: tuple[Check, ...] = ()
    correct: tuple[int, ...] = ()
    first_word: tuple[int, ...] = ()
    said: tuple[str, ...] = ()
    fidelity: tuple[Fidelity, ...] = ()
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    worker: str = ""

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that didn't hold."""
        return tuple(check for check in self.checks if check.passed is False)

    def to_json(self) -> str:
        """Return the text of ``result.json``; the answers are one string of digits."""
        row = {"format": _FORMAT, **dataclasses.asdict(self)}
        row |= {name: "".join(map(str, row[name])) for name in _DIGITS}
        # A line per field: thousands of answers would be as many lines.
        fields = (f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in row.items())
        return "{\n " + ",\n ".join(fields) + "\n}\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> CellResult:
        """Read ``result.json``.

        Raises:
            BundleError: It was edited, or written by another version.
        """
        try:
            row: dict[str, Any] = parse_json(text)
            if row.pop("format") != _FORMAT:
                raise ValueError("it is of another version's format")
            row["checks"] = tuple(Check(**check) for check in row["checks"])
            row["said"] = tuple(map(str, row["said"]))
            row["fidelity"] = tuple(Fidelity(**one) for one in row["fidelity"])
            row |= {name: tuple(int(digit) for digit in row[name]) for name in _DIGITS}
            return cls(**row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(
                f"'{where}' isn't the result of a cell ({error}): delete it, and it is made again"
            ) from error
