"""INT8 for a plan's graphs: smooth, calibrate on pictures and prompts, choose what stays in float, write integers."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from lmmprune.compiler.bundle.interface import SELECTION, Interface
from lmmprune.compiler.data.calibration import CalibrationSet
from lmmprune.compiler.onnx_files.bucket_graphs import bucket_name
from lmmprune.compiler.quantize.by_layer import LayerPlan as LayerPlan
from lmmprune.compiler.quantize.by_layer import calibrate_by_layer
from lmmprune.compiler.quantize.calibrators import Integers, get_calibrator
from lmmprune.compiler.quantize.feeds import SampleFeeds
from lmmprune.compiler.quantize.int8_plan import WHOLE_BYTES, Int8Plan
from lmmprune.compiler.quantize.quantize_others import kept_in_each, quantize_counts, quantize_others, write_counts
from lmmprune.compiler.quantize.quantize_whole import Tools, quantize_whole
from lmmprune.compiler.quantize.quantize_whole import write_to_run as write_to_run
from lmmprune.errors import below
from lmmprune.lazy import is_lazy, numbers
from lmmprune.passes.int8.insert_qdq import InsertQdq, activations
from lmmprune.passes.int8.int8 import SCHEMES
from lmmprune.passes.int8.smooth_quant import SmoothQuant
from lmmprune.progress import Progress, silent, step


@below("quantizing", "try --int8-weights-only, or --no-smooth; without --int8 the export needs no calibration")
def quantize(
    vision: ir.Model,
    decoder: ir.Model,
    selection: ir.Model | None,
    interface: Interface,
    assets: Path,
    data: CalibrationSet | None,
    plan: Int8Plan,
    progress: Progress = silent,
    *,
    dtype: str = "float32",
    cache: Path | None = None,
    weights: str | None = None,
    check: Callable[[], None] = lambda: None,
    views: Mapping[str, ir.Model] = MappingProxyType({}),
    buckets: Mapping[int, ir.Model] = MappingProxyType({}),
) -> dict[str, Any]:
    """Quantize the plan's graphs in place.

    Vision graphs of several sizes share their weights, and so do those of several counts: what the weights become is
    found on the largest, the ranges of activations on each. The decoder is shown pictures of the largest size.

    Args:
        vision: Pruned float32 graph.
        decoder: Pruned float32 graph, whose cache grows.
        selection: What chooses between them, float32; it stays as it is.
        interface: How they are run.
        assets: Directory with the tokenizer and the preprocessor.
        data: What to calibrate on; None for a scheme without calibration.
        plan: How.
        progress: Called with what is done, how much of it, and how much there is.
        dtype: Floating-point type that they are cast to later.
        cache: Directory of finished and stopped calibrations; None is the user's.
        weights: Digest of what the weights are read from; with None, a calibration layer by layer can't be resumed.
        check: Called when weights have been read.
        views: Component -> vision graph of a further size, float32.
        buckets: Token count -> graph behind the vision graph, float32.

    Returns:
        By part, what was found: smoothed activations, and blocks that stay in float.
    """
    parts = [(part, model) for part, model in (("vision", vision), ("decoder", decoder)) if part in plan.parts]
    keeps = kept_in_each(plan, dict(parts), buckets)
    if data is None:
        for part, model in (*parts, *views.items(), *((bucket_name(count), one) for count, one in buckets.items())):
            InsertQdq(scheme=plan.scheme, dtype=dtype, keep_float=keeps(part))(model)
        return {}
    # Within the bundle in the making: a place with room for the weights, which /tmp need not be.
    with tempfile.TemporaryDirectory(dir=assets, prefix="calibration.") as name:
        work = Path(name)
        # The scan for blocks to keep in float compares outputs of the whole model.
        by_layer = float_bytes(decoder) > WHOLE_BYTES and plan.policy != "auto"
        for part, model in parts:
            if part == "decoder" and by_layer:
                continue
            with step(progress, f"write float {part}"):
                write_to_run(model, work / f"{part}.onnx")
                check()
        chooser = None
        if selection is not None:
            chooser = work / f"{SELECTION}.onnx"
            write_to_run(selection, chooser)
        behind = write_counts(buckets, work)
        feeds = SampleFeeds(interface, assets, data, work / "vision.onnx", chooser, buckets=behind)
        found = {}
        for part, model in parts:
            if part == "decoder" and by_layer:
                found[part] = _by_layer(model, interface, dtype, feeds, plan, progress, cache, weights, check)
                continue
            samples = feeds.vision() if part == "vision" else feeds.decoder()
            tools = Tools(plan=plan, progress=progress, dtype=dtype, origin=feeds.digest(), cache=cache)
            found[part], done = quantize_whole(part, model, work / f"{part}.onnx", samples, keeps(part), tools)
            if part == "vision":
                looks = {view.component: feeds.vision(view) for view in interface.sizes}
                quantize_others(views, looks, done, tools)
                found |= quantize_counts(buckets, behind, feeds.bucket(), keeps("bucket"), tools)
    return found


def float_bytes(model: ir.Model) -> int:
    """Return the size of a float32 graph's weights in bytes."""
    return sum(4 * math.prod(numbers(value.shape)) for value in model.graph.initializers.values() if is_lazy(value))


def _by_layer(
    model: ir.Model,
    interface: Interface,
    dtype: str,
    feeds: SampleFeeds,
    plan: Int8Plan,
    progress: Progress,
    cache: Path | None,
    weights: str | None,
    check: Callable[[], None],
) -> dict[str, Any]:
    """Quantize the decoder in place, with one layer of it in memory."""
    layout = interface.cache
    pairs = zip(layout.past, layout.present, strict=True)
    scheme = SCHEMES[plan.scheme]
    names = activations(model, plan.scheme)
    wanted = LayerPlan(
        names=names,
        calibrator=get_calibrator(plan.calibrator, dict(plan.options)),
        integers=Integers.of(plan.scheme),
        smooth=plan.smooth and scheme.activation is not None,
        cache={name: out for past, present in pairs for name, out in zip(past, present, strict=True)},
        empty=(1, layout.kv_heads, 0, layout.head_dim),
    )
    ranges, smoothed = calibrate_by_layer(
        model,
        feeds.script,
        wanted,
        origin=None
        if weights is None
        else f"{weights} {feeds.digest()} {interface.schedule} {interface.llm_positions}",
        directory=cache,
        check=check,
        done=functools.partial(progress, "calibrate decoder, layers"),
    )
    SmoothQuant(factors={name: row.factors for name, row in smoothed.items() if row.factors is not None})(model)
    keep = plan.kept("decoder")
    InsertQdq(scheme=plan.scheme, ranges=ranges, dtype=dtype, keep_float=keep)(model)
    record: dict[str, Any] = {"by_layer": True, "float": sorted(keep)}
    if wanted.smooth:
        record["smoothed"] = {name: row.alpha for name, row in smoothed.items() if row.alpha is not None}
    return record
