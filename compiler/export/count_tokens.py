"""How many patches a method itself would keep, picture by picture: the calibration behind ``--ratio auto``."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lmmprune.compiler.bundle.bundle import PREPROCESSOR
from lmmprune.compiler.data.calibration import CalibrationSet
from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.errors import below, require
from lmmprune.facts import Facts
from lmmprune.names import DYNAMIC_COUNT, PIXEL_VALUES
from lmmprune.passes.methods import Method
from lmmprune.passes.reduce.split_vision import CountTokens

COUNTS = "token_counts.json"
HISTOGRAM = "token_counts.png"


@dataclass(frozen=True, kw_only=True)
class DynamicCounts:
    """Counts ``k(x)`` of some pictures, and the constant that a percentile of them makes."""

    method: str
    source: str
    tokens: int
    percentile: float
    counts: tuple[int, ...]

    @property
    def keep(self) -> int:
        """The smallest count that serves so many percent of the pictures."""
        ranked = sorted(self.counts)
        return ranked[max(0, math.ceil(self.percentile / 100 * len(ranked)) - 1)]


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
        assets: Directory with the preprocessor; the graph is written beside it for a moment.
        percentile: 0 < p <= 100.
        progress: Called with what is done, how much of it, and how much there is.
    """
    ort = require("onnxruntime", "export")
    graph = vision.clone()
    CountTokens(method=method, grid=facts.grid)(graph)
    preprocess = Preprocessor.load(assets / PREPROCESSOR)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    counts: list[int] = []
    # Beside the bundle in the making: a place with room for the weights, which /tmp need not be.
    with tempfile.TemporaryDirectory(dir=assets.parent, prefix=f"{assets.name}.counts.") as name:
        path = Path(name) / "vision.onnx"
        ir.save(graph, path, external_data="vision.onnx.data")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for index, sample in enumerate(data.samples):
            counts += session.run([DYNAMIC_COUNT], {PIXEL_VALUES: preprocess(sample.image)})[0].tolist()
            progress("count tokens", index + 1, len(data.samples))
    return DynamicCounts(
        method=method.name,
        source=data.source,
        tokens=facts.tokens,
        percentile=percentile,
        counts=tuple(counts),
    )


def save_counts(found: DynamicCounts, directory: Path, *, marks: Sequence[int]) -> None:
    """Write the counts as JSON and their histogram as a picture.

    Args:
        found: The counts.
        directory: Where to.
        marks: Counts that the bundle has: the constant, or the buckets.
    """
    row = {
        "method": found.method,
        "source": found.source,
        "tokens": found.tokens,
        "percentile": found.percentile,
        "keep": list(marks),
        "counts": list(found.counts),
    }
    (directory / COUNTS).write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    require("matplotlib", "export")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    edges = np.arange(min(found.counts), max(found.counts) + 2) - 0.5
    bins = edges if len(edges) <= 41 else np.linspace(edges[0], edges[-1], 41)
    axes.hist(found.counts, bins=bins.tolist(), color="#4477aa")
    for mark in marks:
        axes.axvline(mark, color="#ee6677", linewidth=1.5)
        axes.annotate(f" {mark}", (mark, 1), xycoords=("data", "axes fraction"), va="top", color="#ee6677")
    axes.set_xlabel(f"patches that {found.method} itself would keep, of {found.tokens}")
    axes.set_ylabel(f"pictures of {len(found.counts)}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(directory / HISTOGRAM, dpi=150)
