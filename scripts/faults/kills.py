"""Placeholder."""

from __future__ import annotations

from faults.tally import Row, Rows


def run(seconds: float, seed: int) -> list[Row]:
    """Nothing yet."""
    return Rows("kills").list()
