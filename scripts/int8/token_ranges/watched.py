"""What is seen of one activation, token by token, and the numbers that it comes to."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmmprune.compiler.quantize.calibrators import CALIBRATORS, Integers, get_calibrator
from lmmprune.compiler.quantize.histogram import Histogram
from lmmprune.passes.int8.int8 import quantization
from token_ranges.labels import SCHEME


@dataclass(kw_only=True)
class Watched:
    """The ends of what was seen of one activation, by token; float64.

    Attributes:
        seen: Distribution over all tokens.
        others: Ends without the first token.
        rest: Ends without the one token per run of several that reaches furthest.
        top: Largest |x| of each token of a prefill, one array per sample.
    """

    seen: Histogram
    others: tuple[float, float] = (0.0, 0.0)
    rest: tuple[float, float] = (0.0, 0.0)
    top: list[Any] = field(default_factory=list)

    def update(self, values: Any, *, first: bool, prefill: bool) -> None:
        """Count the values ``[1,T,C]`` of a run; ``first`` says that the first token is CLS or BOS."""
        self.seen.update(values)
        if values.ndim != 3:
            return
        low, high = values[0].min(axis=1), values[0].max(axis=1)
        reach = np.maximum(-low, high)
        keep = np.ones(len(reach), bool)
        keep[0] = not first
        self.others = _wider(self.others, low[keep], high[keep])
        if prefill and len(reach) > 1:
            self.top.append(reach)
            keep = np.arange(len(reach)) != reach.argmax()
            self.rest = _wider(self.rest, low[keep], high[keep])
        else:
            self.rest = _wider(self.rest, low, high)


def _wider(ends: tuple[float, float], low: Any, high: Any) -> tuple[float, float]:
    return (min(ends[0], *low.tolist()), max(ends[1], *high.tolist())) if len(low) else ends


def row(found: Watched, visual: range | None) -> dict[str, Any]:
    """Return the numbers of one activation."""
    seen, integers = found.seen, Integers.of(SCHEME)
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    ranges = {name: get_calibrator(name).range(seen, integers) for name in CALIBRATORS}
    data: dict[str, Any] = {
        "low": low,
        "high": high,
        "width": high - low,
        "steps": {name: quantization(ends, symmetric=False)[0] for name, ends in ranges.items()},
    }
    if found.top:
        peaks = [int(reach.argmax()) for reach in found.top]
        data |= {
            "first_sets": 1 - (found.others[1] - found.others[0]) / (high - low),
            "one_token_sets": 1 - (found.rest[1] - found.rest[0]) / (high - low),
            # How far the furthest token reaches beyond the usual one, and where it is.
            "top_over_median": statistics.median(float(r.max() / np.median(r)) for r in found.top),
            "first_over_median": statistics.median(float(r[0] / np.median(r)) for r in found.top),
            "top_is_first": statistics.fmean(peak == 0 for peak in peaks),
            "top_is_visual": statistics.fmean(peak in visual if visual else peak > 0 for peak in peaks),
        }
    return data
