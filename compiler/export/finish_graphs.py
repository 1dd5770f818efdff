"""From pruned float32 graphs to the files of the bundle: integers, the target's type and operators, weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmmprune.compiler.bundle.interface import SELECTION
from lmmprune.compiler.bundle.manifest import File
from lmmprune.compiler.export.decide import Decision
from lmmprune.compiler.export.describe import interface_of
from lmmprune.compiler.export.fingerprint import fingerprint
from lmmprune.compiler.export.reduce import Reduced
from lmmprune.compiler.export.step_clock import StepClock
from lmmprune.compiler.lower.lower import lower
from lmmprune.compiler.onnx_files import write_graphs as files
from lmmprune.compiler.onnx_files.bucket_graphs import write_bucket_graphs
from lmmprune.compiler.quantize import quantize as int8
from lmmprune.compiler.quantize.carry import carry
from lmmprune.compiler.quantize.int8_plan import Int8Plan
from lmmprune.compiler.quantize.quantize_int4 import forget_rounded, quantize_int4
from lmmprune.passes.lower.cast_float import CastFloat
from lmmprune.passes.lower.group_query import GroupQuery
from lmmprune.passes.lower.static_cache import StaticCache
from lmmprune.progress import step


def quantize(decision: Decision, reduced: Reduced, assets: Path, clock: StepClock) -> dict[str, Any] | None:
    """Quantize the graphs, if that was asked for.

    Args:
        decision: What is going to be done.
        reduced: Pruned float32 graphs; changed in place.
        assets: Directory with the tokenizer and the preprocessor.
        clock: Told of the steps.

    Returns:
        What the manifest says of it; None: nothing was quantized.
    """
    four, eight, data = decision.int4, decision.int8, decision.data
    if decision.carried is not None:
        carry(reduced.decoder, reduced.packed, decision.carried)
    seen = None
    if four is not None:
        # Before the tower becomes INT8: samples go through graphs in floating point.
        seen = quantize_int4(
            reduced.vision,
            reduced.decoder,
            reduced.selection,
            interface_of(decision, reduced),
            assets,
            data,
            four,
            clock.report,
            dtype=decision.dtype,
            check=decision.source.checkpoint.refuse_damage,
        )
    if eight is not None:
        found = _quantize_int8(decision, eight, reduced, assets, clock)
        return found if four is None else {**found, "decoder": four.record(seen)}
    if four is None:
        return None
    read = {"source": data.source, "samples": len(data.samples)} if four.calibrated and data else {}
    return {**read, "policy": four.policy, "decoder": four.record(seen)}


def _quantize_int8(
    decision: Decision, plan: Int8Plan, reduced: Reduced, assets: Path, clock: StepClock
) -> dict[str, Any]:
    data = decision.data
    found = int8.quantize(
        reduced.vision,
        reduced.decoder,
        reduced.selection,
        interface_of(decision, reduced),
        assets,
        data,
        plan,
        clock.report,
        dtype=decision.dtype,
        weights=fingerprint(decision, None),
        check=decision.source.checkpoint.refuse_damage,
        views=reduced.views,
        buckets=reduced.buckets,
    )
    return plan.record(data, found) if data else {"policy": "all"}


def cast_and_lower(decision: Decision, reduced: Reduced, clock: StepClock) -> None:
    """Bring the graphs into the target's type and operators, and the cache into the form that was asked for."""
    if decision.dtype != "float32":
        with step(clock.report, "cast"):
            for model in reduced.models:
                CastFloat(dtype=decision.dtype)(model)
    with step(clock.report, "lower"):
        _form_cache(decision, reduced)
        for model in reduced.models:
            lower(model, decision.target)


def _form_cache(decision: Decision, reduced: Reduced) -> None:
    """Write how the decoder keeps keys and values: in place where the target's kernel or the user has it so."""
    past, capacity = interface_of(decision, reduced).cache.past, decision.request.static_cache
    joined = GroupQuery(past=past, removed=reduced.removed, capacity=capacity)
    if decision.target.group_query and joined.suits(reduced.decoder):
        joined(reduced.decoder)
    elif capacity is not None:
        StaticCache(past=past, capacity=capacity, removed=reduced.removed)(reduced.decoder)


def write_graphs(
    decision: Decision, reduced: Reduced, directory: Path, calibration: Mapping[str, Any] | None, clock: StepClock
) -> dict[str, File]:
    """Write the finished graphs and their weights.

    Returns:
        Size and SHA-256 of the files of weights that were streamed.
    """
    write_bucket_graphs(reduced.buckets, directory)
    between = {} if reduced.selection is None else {SELECTION: reduced.selection}
    written = files.write_graphs(
        {"vision": reduced.vision, **reduced.views, **between, **reduced.selections, "decoder": reduced.decoder},
        directory,
        decision.source.checkpoint,
        key=fingerprint(decision, calibration),
        shared=decision.request.share_weights,
        lenders={
            "decoder": SELECTION,
            **dict.fromkeys(reduced.views, "vision"),
            **dict.fromkeys(reduced.selections, SELECTION),
        },
        progress=clock.report,
    )
    forget_rounded(directory)
    return written
