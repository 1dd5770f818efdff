"""A small bundle to calibrate, and samples for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import runtime_fixtures as fx

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.calibration import CalibrationSet, Sample
from lmmprune.compiler.quantize.calibrators import Integers
from lmmprune.compiler.quantize.feeds import SampleFeeds
from lmmprune.compiler.runtime.decode_steps import Steps

WATCHED = ["turned", "deeper", "state", "image_features"]
S8 = Integers.of("s8s8")
Samples = list[Callable[[], Steps]]


def calibration_bundle(path: Path) -> Bundle:
    """Write a bundle whose positions are those of the picture."""
    return fx.make_bundle(path, keep=4, positions="original")


def some(count: int = 10, **changes: Any) -> CalibrationSet:
    """Return samples, every third without an answer."""
    rows = [
        Sample(image=fx.picture(i, 15 - i), prompt=f"question {i}", answer="ab"[: i % 3] and f"answer {i}")
        for i in range(count)
    ]
    rows[0] = dataclasses.replace(rows[0], **changes)
    return CalibrationSet(samples=rows, source="tests", generic=False)


def feeds(bundle: Bundle, data: CalibrationSet) -> SampleFeeds:
    return SampleFeeds(bundle.manifest, bundle.path, data, bundle.vision)
