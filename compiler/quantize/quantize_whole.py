"""INT8 for one graph that is run as a whole: smooth, calibrate, choose what stays in float, write integers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lmmprune.compiler.quantize.calibrators import Integers, get_calibrator
from lmmprune.compiler.quantize.channels import observe_channels
from lmmprune.compiler.quantize.int8_plan import Int8Plan
from lmmprune.compiler.quantize.measure import measure
from lmmprune.compiler.quantize.sensitivity import Samples, scan
from lmmprune.compiler.quantize.smooth import Smoothed, search
from lmmprune.passes.int8.insert_qdq import InsertQdq, activations
from lmmprune.passes.int8.int8 import SCHEMES, Range
from lmmprune.passes.int8.smooth_quant import Smoothable, SmoothQuant, find_smoothable
from lmmprune.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What all graphs of a bundle are quantized with.

    Attributes:
        plan: How.
        progress: Called with what is done, how much of it, and how much there is.
        dtype: Floating-point type that the graphs are cast to later.
        origin: Digest of what their samples depend on.
        cache: Directory of finished and stopped calibrations; None is the user's.
    """

    plan: Int8Plan
    progress: Progress
    dtype: str
    origin: str
    cache: Path | None

    def ranges(self, part: str, model: ir.Model, graph: Path, samples: Samples) -> dict[str, Range]:
        """Return the range of each activation of a graph, run on samples."""
        return measure(
            graph,
            activations(model, self.plan.scheme),
            samples,
            calibrator=get_calibrator(self.plan.calibrator, dict(self.plan.options)),
            integers=Integers.of(self.plan.scheme),
            origin=self.origin,
            cache=self.cache,
            done=functools.partial(_report, self.progress, f"calibrate {part}", len(samples)),
        )


@dataclass(frozen=True, kw_only=True)
class Done:
    """What was done to a graph whose weights others share.

    Attributes:
        graph: Its float32 file, smoothed.
        smoothed: Of each of its activations that can be, in the graph's order: the weights that read it, and how.
        keep_float: Its blocks that stay in float.
    """

    graph: Path
    smoothed: Sequence[tuple[tuple[str, ...], Smoothed]]
    keep_float: frozenset[str]


def quantize_whole(
    part: str, model: ir.Model, graph: Path, samples: Samples, keep: frozenset[str], tools: Tools
) -> tuple[dict[str, Any], Done]:
    """Quantize a graph in place.

    Args:
        part: Its name.
        model: Pruned float32 graph.
        graph: Its file.
        samples: Start the runs of one sample each.
        keep: Blocks that stay in float in any case.
        tools: How.

    Returns:
        What the manifest says of it, and what others with its weights need to know.
    """
    plan, record = tools.plan, dict[str, Any]()
    rows: list[tuple[tuple[str, ...], Smoothed]] = []
    if plan.smooth and SCHEMES[plan.scheme].activation is not None:
        readers = [readers_of(group) for group in find_smoothable(model)]
        smoothed = _smooth(graph, model, samples, plan.scheme, functools.partial(tools.progress, f"smooth {part}"))
        record["smoothed"] = {name: row.alpha for name, row in smoothed.items() if row.alpha is not None}
        rows = list(zip(readers, smoothed.values(), strict=True))
        if part == "decoder" and record["smoothed"]:
            write_to_run(model, graph)
        elif record["smoothed"]:
            # The decoder goes on reading the features of the graph as it was: they are the same.
            graph = write_to_run(model, graph.with_name(f"{part}.smooth.onnx"))
    ranges = tools.ranges(part, model, graph, samples)
    if plan.policy == "auto":
        seen = scan(
            graph,
            plan.scheme,
            ranges,
            samples,
            budget=plan.budget,
            done=functools.partial(tools.progress, f"scan {part}"),
        )
        keep |= set(seen.keep_float)
        record |= {"errors": dict(seen.errors), "error_all_int8": seen.all_int8, "error": seen.error}
    record["float"] = sorted(keep)
    InsertQdq(scheme=plan.scheme, ranges=ranges, dtype=tools.dtype, keep_float=keep)(model)
    return record, Done(graph=graph, smoothed=rows, keep_float=keep)


def readers_of(group: Smoothable) -> tuple[str, ...]:
    """Return the names of the weights that read an activation: what it is known by in every graph of one model."""
    return tuple(str(node.inputs[1].name) for node in group.readers)  # type: ignore[union-attr]  # a weight


def write_to_run(model: ir.Model, path: Path) -> Path:
    """Write a graph to be run and thrown away, its weights beside it; return the file."""
    ir.save(model, path, external_data=f"{path.name}.data")
    return path


def _smooth(
    graph: Path, model: ir.Model, samples: Samples, scheme: str, progress: Callable[[int, int], None]
) -> dict[str, Smoothed]:
    """Smooth a graph in place."""
    groups = find_smoothable(model)
    names = [str(group.value.name) for group in groups]
    stats = observe_channels(graph, names, samples, done=lambda finished: progress(finished, len(samples)))
    found = search(groups, stats, symmetric=SCHEMES[scheme].symmetric)
    SmoothQuant(factors={name: row.factors for name, row in found.items() if row.factors is not None})(model)
    return found


def _report(progress: Progress, what: str, total: int, finished: int) -> None:
    progress(what, finished, total)
