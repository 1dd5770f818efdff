"""What the manifest and the report say of an export, read off the graphs and the decisions behind them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from lmmprune.compiler.assets.tile_settings import tile_texts
from lmmprune.compiler.assets.write_assets import Assets
from lmmprune.compiler.bundle.content import Int4Weights, Loss
from lmmprune.compiler.bundle.interface import SELECTION, Bucket, Cache, Interface, ScheduledSite, View
from lmmprune.compiler.bundle.manifest import Manifest, ModelSource, Precision
from lmmprune.compiler.export.count_tokens import TokenPlan
from lmmprune.compiler.export.decide import Decision, image_tokens_of
from lmmprune.compiler.export.reduce import Reduced
from lmmprune.compiler.export.request import Report
from lmmprune.compiler.export.step_clock import StepClock
from lmmprune.compiler.export.values import Schedule
from lmmprune.compiler.export.widen import batch_of
from lmmprune.compiler.measure.memory import peak_bytes
from lmmprune.compiler.onnx_files.bucket_graphs import bucket_file
from lmmprune.compiler.onnx_files.signature import signature
from lmmprune.models.identity import Identity, identify_adapter
from lmmprune.names import CACHE_LENGTH, KEPT, kept_output, past, present
from lmmprune.passes.reduce.schedule import average
from lmmprune.passes.reduce.stage import Stage
from lmmprune.version import __version__

_TOOLS = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def interface_of(decision: Decision, reduced: Reduced) -> Interface:
    """Return what it takes to run the graphs as they are now: float32, cast, lowered."""
    behind = [
        Bucket(tokens=count, graph=signature(bucket_file(count), model))
        for count, model in sorted(reduced.buckets.items())
    ]
    named = [behind[0].graph] if behind else [signature("vision.onnx", reduced.vision)]
    places = any(output.name == KEPT for graph in named for output in graph.outputs)
    return Interface(
        prompt=reduced.prompt,
        positions=decision.positions,
        llm_positions=decision.positions,
        max_positions=decision.source.decoder.max_positions,
        schedule=_schedule(decision, reduced),
        image_tokens=reduced.image_tokens,
        prefix=reduced.text.prefix,
        images=decision.request.images,
        joint=decision.request.joint,
        grid=decision.source.vision.grid,
        tiles=decision.source.tiles,
        tile_grids=tile_texts(decision.source.family, reduced.prompt.image_token, decision.grids),
        vision=signature("vision.onnx", reduced.vision),
        decoder=signature("decoder.onnx", reduced.decoder),
        cache=_cache(decision, reduced),
        sizes=_sizes(decision, reduced),
        buckets=tuple(behind),
        selection=None if reduced.selection is None else signature(f"{SELECTION}.onnx", reduced.selection),
        kept=KEPT if places else None,
        long_turns=True,
        batch=batch_of(reduced),
    )


def describe(
    decision: Decision,
    plan: TokenPlan,
    reduced: Reduced,
    assets: Assets,
    calibration: Mapping[str, Any] | None,
    loss: Loss | None,
) -> Manifest:
    """Return the manifest of finished graphs, but for its list of files."""
    source, request = decision.source, decision.request
    # Nothing removed is the unpruned model, whatever the method.
    pruned = bool(reduced.stages or reduced.buckets)
    interface = dataclasses.replace(interface_of(decision, reduced), video=assets.video)
    return Manifest(
        **{field.name: getattr(interface, field.name) for field in dataclasses.fields(Interface)},
        model=source.identity.name if source.identity.kind == "directory" else source.name,
        family=source.family.name,
        source=_source(source.identity),
        weights="dummy" if source.dummy else "checkpoint",
        method=decision.method.name if pruned else None,
        parameters=decision.method.parameters if pruned else {},
        precision=Precision(
            dtype=decision.dtype,
            int8=_int8(decision),
            int4=_int4(decision),
            calibration=calibration,
            carried=decision.carried.weights if decision.carried else None,
        ),
        target=decision.target.name,
        opset=decision.target.opset,
        requested_tokens=None if isinstance(request.tokens, Schedule) else plan.counts[-1],
        average_tokens=average([(stage.site, stage.keep) for stage in reduced.stages], decision.facts),
        adapter=_source(identify_adapter(request.adapter)) if request.adapter else None,
        generation={"applied": assets.generation.applied, "ignored": assets.generation.ignored},
        flops=reduced.flops,
        loss=loss,
        tools=tools(),
        created=_now(),
    )


def _int8(decision: Decision) -> str | None:
    carried = decision.carried
    if carried is not None and carried.weights.bits == 8:
        return "s8-weights"
    return decision.int8.scheme if decision.int8 else None


def _int4(decision: Decision) -> Int4Weights | None:
    carried = decision.carried
    if carried is not None and carried.weights.bits == 4 and carried.group is not None:
        return Int4Weights(group=carried.group, method="checkpoint")
    return Int4Weights(group=decision.int4.group, method=decision.int4.method) if decision.int4 else None


def report(
    decision: Decision, plan: TokenPlan, graphs: Reduced, assets: Assets, manifest: Manifest, clock: StepClock
) -> Report:
    """Return what was done, and what the user should know of it."""
    warnings = [*decision.source.remarks, *assets.warnings, *graphs.remarks]
    if decision.calibrates and decision.data:
        warnings.extend(decision.data.warnings)
    if decision.source.dummy:
        warnings.append("the weights are synthetic: use the bundle for latency, memory and size, not for answers")
    return Report(
        manifest=manifest,
        seconds=clock.elapsed,
        peak_bytes=peak_bytes(),
        warnings=tuple(warnings),
        steps=clock.seconds(),
        counts=plan.found,
    )


def tools() -> dict[str, str]:
    """Return the versions of all that takes part in an export."""
    return {"lmmprune": __version__} | {name: importlib.metadata.version(name) for name in _TOOLS}


def _schedule(decision: Decision, reduced: Reduced) -> tuple[ScheduledSite, ...]:
    """Return the sites with the tokens that come in and go out, and where the graphs tell which are kept."""
    sides = {
        False: [reduced.buckets[max(reduced.buckets)] if reduced.buckets else reduced.vision],
        True: [reduced.decoder] if reduced.selection is None else [reduced.selection, reduced.decoder],
    }
    outputs = {
        inside: {str(value.name) for model in models for value in model.graph.outputs}
        for inside, models in sides.items()
    }
    tokens = decision.facts.tokens
    if reduced.buckets and not reduced.stages:
        # The largest bucket keeps every token.
        kept = kept_output("vision_output", outputs[False])
        return (ScheduledSite(site="vision_output", tokens_in=tokens, tokens_out=tokens, kept=kept),)
    return _sites(reduced.stages, tokens, outputs, every=bool(reduced.buckets))


def _sizes(decision: Decision, reduced: Reduced) -> tuple[View, ...]:
    """Return what each size of pictures or grid of tiles becomes, where there are several."""
    views = []
    for plan in decision.views:
        main = plan.source is decision.source
        component = "vision" if main else f"vision_{plan.name}"
        model = reduced.vision if main else reduced.views[component]
        outputs = {str(value.name) for value in model.graph.outputs}
        name = SELECTION if main else f"{SELECTION}_{plan.name}"
        chooser = reduced.selection if main else reduced.selections.get(name)
        chosen = {str(value.name) for value in chooser.graph.outputs} if chooser is not None else set()
        view = View(
            graph=signature(f"{component}.onnx", model),
            grid=plan.facts.grid,
            tiles=plan.source.tiles,
            schedule=_sites(plan.stages, plan.facts.tokens, {False: outputs, True: chosen}),
            image_tokens=image_tokens_of(plan.stages, plan.facts),
            selection=None if chooser is None else signature(f"{name}.onnx", chooser),
        )
        views.append(view)
    return tuple(views)


def _sites(
    stages: Sequence[Stage], tokens: int, outputs: Mapping[bool, set[str]], *, every: bool = False
) -> tuple[ScheduledSite, ...]:
    """Return the sites of some stages, from so many tokens on.

    Args:
        stages: In order of depth.
        tokens: Before the first.
        outputs: Of the graphs before the decoder (False) and of those with the text (True).
        every: Whether graphs tell what is kept even where all are.
    """
    rows = []
    for stage in stages:
        removes = stage.keep < tokens or stage.prune_text or every
        rows.append(
            ScheduledSite(
                site=str(stage.site),
                tokens_in=tokens,
                tokens_out=stage.keep,
                text_removed=stage.prune_text,
                kept=kept_output(stage.site, outputs[stage.site.in_decoder]) if removes else None,
            )
        )
        tokens = stage.keep
    return tuple(rows)


def _cache(decision: Decision, reduced: Reduced) -> Cache:
    """Return the layout of the key/value cache, with the tokens that are gone before each layer."""
    spec = decision.source.decoder
    in_place = any(value.name == CACHE_LENGTH for value in reduced.decoder.graph.inputs)
    return Cache(
        past=tuple(past(layer) for layer in range(spec.layers)),
        present=tuple(present(layer) for layer in range(spec.layers)),
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        length_offsets=tuple(-count for count in reduced.removed),
        capacity=decision.request.static_cache if in_place else None,
        length=CACHE_LENGTH if in_place else None,
    )


def _source(identity: Identity) -> ModelSource:
    return ModelSource(**dataclasses.asdict(identity))


def _now() -> str:
    """Return the time in UTC, or the one that reproducible builds set."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(given), timezone.utc) if given.isdigit() else datetime.now(timezone.utc)
    return now.isoformat(timespec="seconds")
