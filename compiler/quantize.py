"""INT8 for both graphs: smooth, calibrate on pictures and prompts, choose what stays in float, write integers."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lmmprune.compiler.calibration.calibrators import Integers, get_calibrator
from lmmprune.compiler.calibration.channels import observe_channels
from lmmprune.compiler.calibration.data import CalibrationSet
from lmmprune.compiler.calibration.feeds import SampleFeeds
from lmmprune.compiler.calibration.measure import measure
from lmmprune.compiler.calibration.observe import Steps
from lmmprune.compiler.canonical import Canonical
from lmmprune.compiler.int8_plan import Int8Plan
from lmmprune.compiler.manifest import Manifest
from lmmprune.compiler.sensitivity import scan
from lmmprune.compiler.smooth import Smoothed, search
from lmmprune.passes.insert_qdq import InsertQdq, activations
from lmmprune.passes.int8 import SCHEMES
from lmmprune.passes.smooth_quant import SmoothQuant, find_smoothable

Progress = Callable[[str, int, int], None]
Samples = list[Callable[[], Steps]]


def quantize(
    graphs: Canonical,
    manifest: Manifest,
    assets: Path,
    data: CalibrationSet | None,
    plan: Int8Plan,
    progress: Progress,
    *,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Quantize both graphs in place.

    Args:
        graphs: Pruned float32 graphs.
        manifest: Of the bundle in the making: prompt, positions, cache layout, and the type to cast to later.
        assets: Directory with the tokenizer and the preprocessor.
        data: What to calibrate on; None for a scheme without calibration.
        plan: How.
        progress: Called with what is done, how much of it, and how much there is.
        cache: Directory of finished and stopped calibrations; None is the user's.

    Returns:
        By part, what was found: smoothed activations, and blocks that stay in float.
    """
    parts = (("vision", graphs.vision), ("decoder", graphs.decoder))
    if data is None:
        for part, model in parts:
            InsertQdq(scheme=plan.scheme, dtype=manifest.precision.dtype, keep_float=plan.kept(part))(model)
        return {}
    # Beside the bundle in the making: a place with room for the weights, which /tmp need not be.
    with tempfile.TemporaryDirectory(dir=assets.parent, prefix=f"{assets.name}.calibration.") as name:
        work = Path(name)
        for part, model in parts:
            progress(f"write float {part}", 0, 1)
            _write(model, work / f"{part}.onnx")
        feeds = SampleFeeds(manifest, assets, data, work / "vision.onnx")
        found = {}
        for part, model in parts:
            samples = feeds.vision() if part == "vision" else feeds.decoder()
            graph = work / f"{part}.onnx"
            record: dict[str, Any] = {}
            if plan.smooth and SCHEMES[plan.scheme].activation is not None:
                smoothed = _smooth(graph, model, samples, plan.scheme, functools.partial(progress, f"smooth {part}"))
                record["smoothed"] = {name: row.alpha for name, row in smoothed.items() if row.alpha is not None}
                if part == "decoder" and record["smoothed"]:
                    _write(model, graph)
                elif record["smoothed"]:
                    # The decoder goes on reading the features of the graph as it was: they are the same.
                    graph = work / f"{part}.smooth.onnx"
                    _write(model, graph)
            ranges = measure(
                graph,
                activations(model, plan.scheme),
                samples,
                calibrator=get_calibrator(plan.calibrator, dict(plan.options)),
                integers=Integers.of(plan.scheme),
                origin=feeds.digest(),
                cache=cache,
                done=functools.partial(_report, progress, f"calibrate {part}", len(samples)),
            )
            keep = plan.kept(part)
            if plan.policy == "auto":
                seen = scan(
                    graph,
                    plan.scheme,
                    ranges,
                    samples,
                    budget=plan.budget,
                    done=functools.partial(progress, f"scan {part}"),
                )
                keep |= set(seen.keep_float)
                record |= {"errors": dict(seen.errors), "error_all_int8": seen.all_int8, "error": seen.error}
            record["float"] = sorted(keep)
            InsertQdq(scheme=plan.scheme, ranges=ranges, dtype=manifest.precision.dtype, keep_float=keep)(model)
            found[part] = record
    return found


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


def _write(model: ir.Model, path: Path) -> None:
    ir.save(model, path, external_data=f"{path.name}.data")


def _report(progress: Progress, what: str, total: int, finished: int) -> None:
    progress(what, finished, total)
