"""What a method itself would keep of pictures: the numbers behind ``--ratio auto``, as JSON and as a histogram."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmmprune.errors import require

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
