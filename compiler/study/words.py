"""Numbers of a study as people read them."""

from __future__ import annotations

from lmmprune.compiler.measure.statistics import Estimate
from lmmprune.compiler.study.findings import Row


def points(one: Estimate, *, signed: bool = True) -> str:
    """Return an estimate that is in points already, with its interval: ``-0.3 (-1.1 to 0.4)``."""
    value, low, high = (tenths(number, signed=signed) for number in (one.value, one.low, one.high))
    return f"{value} ({low} to {high})"


def tenths(number: float, *, signed: bool = True) -> str:
    """Return a number with one decimal, with its sign unless it is zero."""
    # Not -0.0, and no sign where there is none.
    return "0.0" if abs(number) < 0.05 else f"{number:+.1f}" if signed else f"{number:.1f}"


def shares(one: Estimate) -> str:
    """Return a share of 0..1 in percent with its interval: ``85.5 (83.8 to 86.9)``."""
    return points(Estimate(value=100 * one.value, low=100 * one.low, high=100 * one.high), signed=False)


def times(one: Estimate) -> str:
    """Return a factor with its interval: ``1.33 (1.28 to 1.40)``."""
    return f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})"


def number(one: Estimate) -> str:
    """Return an estimate in three figures with its interval: ``0.0123 (0.01 to 0.015)``."""
    return f"{one.value:.3g} ({one.low:.3g} to {one.high:.3g})"


def name(row: Row) -> str:
    """Return a cell's name for a sentence: ``freepruner 50 % int8``."""
    return f"{row.cell.label} {row.precision}"


def verdict(one: Estimate, null: float) -> str:
    """Say whether an interval contains a value: ``contains 0``, or on which side of it it lies."""
    if one.contains(null):
        return f"contains {null:g}"
    return f"above {null:g}" if one.above(null) else f"below {null:g}"
