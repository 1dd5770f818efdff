"""Time variants in turns, so that a busy moment or a hot GPU troubles all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

WARM_UP = 3

Run = Callable[[], object]
"""Does its work and waits for it."""


def interleaved(
    runs: Mapping[str, Run], rounds: int, guard: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()
) -> dict[str, dict[str, Any]]:
    """Return name -> median, quartiles and all samples in milliseconds, after ``WARM_UP`` rounds.

    Args:
        runs: Name -> what is timed.
        rounds: How often.
        guard: Takes a name and holds its run: what it doesn't let through leaves that name out.
    """
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-WARM_UP, rounds):
        for name in list(samples):
            spent = None
            with guard(name):
                start = time.perf_counter()
                runs[name]()
                spent = (time.perf_counter() - start) * 1e3
            if spent is None:
                del samples[name]
            elif number >= 0:
                samples[name].append(spent)
    return {name: spread(values) for name, values in samples.items()}


def spread(values: list[float]) -> dict[str, Any]:
    """Return median, quartiles and samples."""
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3, "samples": values}
