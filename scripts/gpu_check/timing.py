"""Time variants in turns, so that a busy moment or a hot GPU troubles all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

WARM_UP = 3

Run = Callable[[], object]
"""Does its work and waits for it."""


def interleaved(runs: Mapping[str, Run], rounds: int) -> dict[str, dict[str, Any]]:
    """Return name -> median, quartiles and all samples in milliseconds, after ``WARM_UP`` rounds."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-WARM_UP, rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            spent = (time.perf_counter() - start) * 1e3
            if number >= 0:
                samples[name].append(spent)
    return {name: spread(values) for name, values in samples.items()}


def spread(values: list[float]) -> dict[str, Any]:
    """Return median, quartiles and samples."""
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3, "samples": values}
