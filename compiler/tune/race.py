"""Successive halving that drops a candidate only when its interval says so.

Reference: Jamieson and Talwalkar, 2016, arXiv 1502.07943, for the growing samples; the rule of dropping is ours: a
candidate goes when it surely loses more than is allowed, or surely more than one that costs no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmmprune.compiler.measure.statistics import Floats, estimate, resample_means

FIRST = 16
"""Examples of the first rung."""
GROWTH = 4
"""Times as many in the next one."""


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A candidate in the race.

    Attributes:
        name: Its name.
        cost: FLOPs, compared within a group only.
        group: Precision: what FLOPs of different groups cost can't be told from them.
    """

    name: str
    cost: float
    group: str


def rungs(total: int) -> list[int]:
    """Return how many examples are used from rung to rung: 16, four times as many, ..., all."""
    found = [FIRST]
    while found[-1] * GROWTH < total:
        found.append(found[-1] * GROWTH)
    return [size for size in found if size < total] + [total]


def survivors(
    runners: Sequence[Runner], losses: Floats, pictures: Sequence[str], most: float | None
) -> dict[str, str | None]:
    """Return, for every candidate, why it is dropped; None: it stays.

    Args:
        runners: The candidates.
        losses: Of each on every example, ``[candidates, examples]``.
        pictures: Of every example, for intervals.
        most: The mean loss that is allowed; None: any.
    """
    draws, means = resample_means(losses, pictures), losses.mean(axis=1)
    found: dict[str, str | None] = {}
    for row, runner in enumerate(runners):
        found[runner.name] = None
        own = estimate(means[row], draws[:, row])
        if most is not None and own.above(most):
            found[runner.name] = f"loses {own.low:.3g} or more, and {most:.3g} are allowed"
            continue
        cheaper = [
            other
            for other, one in enumerate(runners)
            if other != row and one.group == runner.group and one.cost <= runner.cost
        ]
        if cheaper:
            best = min(cheaper, key=lambda other: float(means[other]))
            if estimate(means[row] - means[best], draws[:, row] - draws[:, best]).above(0):
                found[runner.name] = f"loses more than {runners[best].name}, which costs no more"
    return found


def front(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    """Return the places that nothing beats in both, the cheapest first."""
    order = sorted(range(len(costs)), key=lambda place: (costs[place], losses[place]))
    found: list[int] = []
    for place in order:
        if not found or losses[place] < losses[found[-1]]:
            found.append(place)
    return found


def knee(costs: Sequence[float], losses: Sequence[float]) -> int:
    """Return the place on a front that lies farthest below the line between its ends, both axes scaled to 0..1."""
    # The ends are (0, 1) and (1, 0), the line x + y = 1.
    return int(np.argmin(_unit(costs) + _unit(losses)))


def _unit(values: Sequence[float]) -> Floats:
    array = np.asarray(values, np.float64)
    unit: Floats = (array - array.min()) / (np.ptp(array) or 1)
    return unit
