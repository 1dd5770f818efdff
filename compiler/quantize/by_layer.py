"""Calibrate a decoder layer by layer: of the weights one layer is in memory, of the samples what the next one reads."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lmmprune.compiler.quantize.cache import default_directory
from lmmprune.compiler.quantize.calibrators import Calibrator, Integers
from lmmprune.compiler.quantize.channels import ChannelRows, ChannelStats
from lmmprune.compiler.quantize.histogram import BINS, Histogram
from lmmprune.compiler.quantize.layer_state import LayerState, Values, load, save
from lmmprune.compiler.quantize.run_segment import providers, run_segment
from lmmprune.compiler.quantize.segments import Segment, split
from lmmprune.compiler.quantize.smooth import Smoothed, search
from lmmprune.errors import require
from lmmprune.lazy import array_of
from lmmprune.passes.find.anchors import find_decoder_anchors
from lmmprune.passes.int8.int8 import Range
from lmmprune.passes.int8.smooth_quant import Smoothable, find_smoothable
from lmmprune.stored import Array

SAVE_SECONDS = 60.0
"""A state is hundreds of megabytes: it is written no more often."""


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What is to be measured.

    Attributes:
        names: Activations whose ranges are wanted.
        calibrator: Chooses them.
        integers: What the activations become.
        smooth: Whether to search for smoothing factors; ranges are then those behind them.
        cache: (key, value) of every layer: the inputs, and the outputs that the next step is fed with.
        empty: Shape of an empty cache, ``[B,Hk,0,D]``.
    """

    names: Sequence[str]
    calibrator: Calibrator
    integers: Integers
    smooth: bool
    cache: Mapping[str, str]
    empty: tuple[int, ...]


def calibrate_by_layer(
    model: ir.Model,
    script: Callable[[], list[list[Values]]],
    plan: LayerPlan,
    *,
    origin: str | None,
    directory: Path | None = None,
    check: Callable[[], None] = lambda: None,
    done: Callable[[int, int], None] = lambda finished, of: None,
) -> tuple[dict[str, Range], dict[str, Smoothed]]:
    """Return the range of every activation, and what smoothing found for each.

    The samples go through the first layer, all of them, then through the second, and so on; within a layer each sample
    runs its prefill and then its decode steps on the cache that the step before left. With a calibrator that takes
    minimum and maximum one pass over the samples does for smoothing too, as a channel that is divided by its factor
    has the divided ends; one with histograms needs a second pass.

    Args:
        model: The pruned float32 decoder, weights lazy; it stays as it is.
        script: Gives for every sample the inputs of its steps, without the cache (see ``SampleFeeds.script``); it isn't
            called where a stopped calibration goes on.
        plan: What to measure.
        origin: Digest of everything that the result depends on; None keeps nothing on disk.
        directory: Of the states; None is ``default_directory()``.
        check: Called when the weights of a layer have been read.
        done: Called with finished and all layers.

    Raises:
        InputError: A value holds NaN or infinity.
    """
    anchors = find_decoder_anchors(model)
    segments = split(model, [str(anchors.embeds.name), *(str(layer.out.name) for layer in anchors.layers)])
    groups = {str(group.value.name): group for group in find_smoothable(model)} if plan.smooth else {}
    file = None if origin is None else (directory or default_directory()) / f"{_key(plan, origin)}.layers.npz"
    state = (load(file) if file else None) or LayerState(values=script())
    done(state.finished, len(segments))
    written = time.monotonic()
    for index in range(state.finished, len(segments)):
        _segment(segments[index], state, plan, groups, check)
        state.finished = index + 1
        last = state.finished == len(segments)
        if file and (last or time.monotonic() - written > SAVE_SECONDS):
            if last:
                state.values = []
            save(file, state)
            written = time.monotonic()
        done(state.finished, len(segments))
    return {name: state.ranges[name] for name in plan.names}, state.smoothed


def _segment(
    segment: Segment, state: LayerState, plan: LayerPlan, groups: Mapping[str, Smoothable], check: Callable[[], None]
) -> None:
    """Take all samples through one segment."""
    known = [
        name
        for name in plan.names
        if name in segment.made or (name in segment.inputs and name not in state.ranges and name not in plan.cache)
    ]
    smoothable = [name for name in known if name in groups]
    weights = {name: array_of(value) for name, value in segment.weights.items()}
    check()
    factors: dict[str, Array] = {}
    seen = {name: Histogram(name=name, bins=BINS if plan.calibrator.histogram else 0) for name in known}
    if plan.calibrator.histogram:
        if smoothable:
            _smooth(segment, state, plan, groups, weights, smoothable, factors)

        def update(name: str, array: Array) -> None:
            seen[name].update(array / factors[name] if name in factors else array)

        run_segment(segment, state.values, weights, cache=plan.cache, empty=plan.empty, values=known, take=update)
    else:
        rest = [name for name in known if name not in groups]
        stats = _smooth(segment, state, plan, groups, weights, smoothable, factors, ends=rest, seen=seen)
        for name in smoothable:
            divisor = factors.get(name, np.float32(1))
            lows, highs = stats[name].lows / divisor, stats[name].highs / divisor
            seen[name].extend(float(lows.min()), float(highs.max()))
    state.ranges |= {name: plan.calibrator.range(histogram, plan.integers) for name, histogram in seen.items()}


def _smooth(
    segment: Segment,
    state: LayerState,
    plan: LayerPlan,
    groups: Mapping[str, Smoothable],
    weights: Mapping[str, Array],
    names: Sequence[str],
    factors: dict[str, Array],
    *,
    ends: Sequence[str] = (),
    seen: Mapping[str, Histogram] | None = None,
) -> dict[str, ChannelStats]:
    """Look at channels and, in the same pass, at the ends of other values; search the factors."""
    channels = {name: ChannelRows(name) for name in names}
    run_segment(
        segment,
        state.values,
        weights,
        cache=plan.cache,
        empty=plan.empty,
        values=names,
        take=lambda name, array: channels[name].update(array),
        ends=ends,
        take_ends=lambda name, low, high: (seen or {})[name].extend(low, high),
        keep=seen is not None,
    )
    stats = {name: rows.result() for name, rows in channels.items()}
    found = search([groups[name] for name in names], stats, symmetric=plan.integers.symmetric)
    state.smoothed |= found
    factors |= {name: row.factors for name, row in found.items() if row.factors is not None}
    return stats


def _key(plan: LayerPlan, origin: str) -> str:
    ort = require("onnxruntime", "export")
    # CUDA's sums round otherwise than the CPU's: layers of both aren't mixed.
    where = [ort.__version__, *providers(ort)]
    parts = [origin, list(plan.names), repr(plan.calibrator), repr(plan.integers), plan.smooth, where]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
