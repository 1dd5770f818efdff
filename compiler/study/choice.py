"""The fastest variant that loses no more than was allowed, and the command that makes it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lmmprune.compiler.measure.statistics import Estimate
from lmmprune.compiler.study.commands import export_command
from lmmprune.compiler.study.findings import Findings, Row
from lmmprune.compiler.study.settings import Settings
from lmmprune.compiler.study.variants import Variants
from lmmprune.compiler.study.words import name, points, times
from lmmprune.errors import InputError

# Of shares that are equal but for the order in which they were added up.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A variant within a loss.

    Attributes:
        row: Which.
        loss: Against the unpruned float model, points.
        allowed: Points that it may lose.
        command: Makes it.
    """

    row: Row
    loss: Estimate
    allowed: float
    command: str

    @property
    def line(self) -> str:
        """What was chosen, in one line."""
        timed = self.row.times.get("ttft_ms")
        fast = (
            f"{times(timed.speedup)} times as fast to the first token"
            if timed
            else f"1/{self.row.speed:.3g} of the prefill's FLOPs"
        )
        unsure = "" if self.loss.high <= self.allowed + _ROUNDING else ", whose interval reaches beyond it"
        return (
            f"Fastest within --max-loss {self.allowed:g}: {name(self.row)}, {fast}, loses"
            f" {points(self.loss, signed=False)} points{unsure}"
        )


def check_allowed(allowed: float | None, *, labelled: bool) -> None:
    """Refuse a loss that can't be measured, before anything is.

    Raises:
        InputError: It is no number of points, or no right answers are known.
    """
    if allowed is None:
        return
    if not (math.isfinite(allowed) and allowed >= 0):
        raise InputError(f"--max-loss {allowed:g}: expected points of accuracy, 0 or more")
    if not labelled:
        raise InputError(
            "--max-loss is in points of accuracy, and no right answers are known: give --data with 'answer' in each"
            " line, or leave it out"
        )


def choose(findings: Findings, allowed: float, settings: Settings, variants: Variants) -> Choice:
    """Return the fastest variant whose loss is within what is allowed.

    Raises:
        InputError: There is none.
    """
    rows = [(row, row.loss) for row in findings.measured if row.cell.method is not None and row.loss is not None]
    within = [(row, loss) for row, loss in rows if loss.value <= allowed + _ROUNDING]
    if not within:
        if not rows:
            raise InputError(f"--max-loss {allowed:g}: no pruned variant was measured, see the reasons in the report")
        nearest, loss = min(rows, key=lambda found: found[1].value)
        raise InputError(
            f"--max-loss {allowed:g}: none of the {len(rows)} pruned variants is within it; the nearest is"
            f" {name(nearest)}, which loses {points(loss, signed=False)} points: allow more, or give lower --ratios"
        )
    row, loss = max(within, key=lambda found: (found[0].speed, -found[1].value))
    return Choice(row=row, loss=loss, allowed=allowed, command=export_command(row.cell, settings, variants))
