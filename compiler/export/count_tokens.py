"""How many tokens stay: the numbers that were asked for, or what the method itself keeps of pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lmmprune.compiler.backends.cpu_session import cpu_session
from lmmprune.compiler.bundle.bundle import PREPROCESSOR
from lmmprune.compiler.data.calibration import CalibrationSet
from lmmprune.compiler.export.decide import Decision
from lmmprune.compiler.export.dynamic_counts import DynamicCounts, save_counts
from lmmprune.compiler.export.step_clock import StepClock
from lmmprune.compiler.export.values import Auto
from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.errors import below
from lmmprune.facts import Facts
from lmmprune.models.canonical import Canonical
from lmmprune.names import DYNAMIC_COUNT, PIXEL_VALUES
from lmmprune.passes.methods import Method
from lmmprune.passes.reduce.split_vision import CountTokens
from lmmprune.passes.reduce.stage import Stage


@dataclass(frozen=True, kw_only=True)
class TokenPlan:
    """How many visual tokens stay where.

    Attributes:
        counts: Per decoder layer, ascending; several are buckets.
        stages: Of the largest count.
        found: What the method itself would keep of pictures; None where nobody asked.
    """

    counts: tuple[int, ...]
    stages: tuple[Stage, ...]
    found: DynamicCounts | None = None


def count_tokens(decision: Decision, graphs: Canonical, assets: Path, clock: StepClock) -> TokenPlan:
    """Return how many tokens stay; where pictures decide, or choose between buckets, run the encoder on them.

    Args:
        decision: What is going to be done.
        graphs: Canonical graphs; stay as they are.
        assets: Directory with the preprocessor; gets the counts and their histogram.
        clock: Told of the step.
    """
    auto = decision.auto
    if decision.data is None or not (auto or decision.buckets):
        return TokenPlan(counts=decision.counts, stages=decision.stages)
    found = measure_counts(
        graphs.vision,
        decision.method,
        decision.facts,
        decision.data,
        assets,
        percentile=(auto or Auto()).percentile,
        progress=clock.report,
    )
    counts, stages = decision.counts, decision.stages
    if auto:
        counts, stages = (found.keep,), tuple(decision.method.stages_for(decision.facts, found.keep))
    save_counts(found, assets, marks=counts)
    return TokenPlan(counts=counts, stages=stages, found=found)


@below("counting what the method itself would keep", "give --ratio a number")
def measure_counts(
    vision: ir.Model,
    method: Method,
    facts: Facts,
    data: CalibrationSet,
    assets: Path,
    *,
    percentile: float,
    progress: Callable[[str, int, int], None],
) -> DynamicCounts:
    """Run the encoder on pictures and collect the counts that the method would choose.

    Args:
        vision: The canonical vision graph; stays as it is.
        method: A method with a count of its own.
        facts: The model's numbers.
        data: The pictures.
        assets: Directory with the preprocessor; the graph is written into it for a moment.
        percentile: 0 < p <= 100.
        progress: Called with what is done, how much of it, and how much there is.
    """
    graph = vision.clone()
    CountTokens(method=method, grid=facts.grid)(graph)
    preprocess = Preprocessor.load(assets / PREPROCESSOR)
    counts: list[int] = []
    # Within the bundle in the making: a place with room for the weights, which /tmp need not be, and which the next
    # export clears where this one is killed.
    with tempfile.TemporaryDirectory(dir=assets, prefix="counts.") as name:
        path = Path(name) / "vision.onnx"
        ir.save(graph, path, external_data="vision.onnx.data")
        session = cpu_session(path)
        for index, sample in enumerate(data.samples):
            pixels = preprocess(sample.image)
            # The graph sees tiles one by one, where pictures have some to choose from.
            for run in [pixels] if preprocess.grids is None else np.split(pixels, len(pixels)):
                counts += session.run([DYNAMIC_COUNT], {PIXEL_VALUES: run})[0].tolist()
            progress("count tokens", index + 1, len(data.samples))
    return DynamicCounts(
        method=method.name,
        source=data.source,
        tokens=facts.tokens,
        percentile=percentile,
        counts=tuple(counts),
    )
