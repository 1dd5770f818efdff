"""The main job: from a model to a bundle with pruned, optionally quantized graphs for one target."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import resource
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from lmmprune.compiler.assets.text_layout import text_layout
from lmmprune.compiler.assets.write_assets import write_assets
from lmmprune.compiler.bundle.bundle import TOKENIZER
from lmmprune.compiler.bundle.manifest import Bucket, Manifest, Precision
from lmmprune.compiler.bundle.replace import BUNDLE, check_directory
from lmmprune.compiler.bundle.write_bundle import write_bundle
from lmmprune.compiler.export.decide import check_cache, counts_of, dtype_of, int8_of, positions_of
from lmmprune.compiler.export.describe import cache_of, largest_of, schedule_of
from lmmprune.compiler.export.request import Progress, Report, Request
from lmmprune.compiler.export.step_clock import StepClock
from lmmprune.compiler.export.values import Auto, Buckets
from lmmprune.compiler.flops.formula import TEXT_TOKENS
from lmmprune.compiler.onnx_files.signature import signature
from lmmprune.compiler.targets import targets
from lmmprune.errors import require
from lmmprune.models.source import Source, refuse_damage, resolve
from lmmprune.version import __version__

if TYPE_CHECKING:
    import onnx_ir as ir

    from lmmprune.compiler.export.count_tokens import DynamicCounts
    from lmmprune.models.canonical import Canonical

_TOOLS = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def export(
    request: Request,
    progress: Progress = lambda what, done, of: None,
    *,
    traced: Callable[[Source], Canonical] | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> Report:
    """Export a model into a bundle.

    Args:
        request: What to do.
        progress: Called with the step's name, what is done of it and how much there is.
        traced: Gives the model's canonical graphs, one layer behind the features, where many bundles of one model are
            made (see ``canonical.shared_trace``); None traces.
        announce: Told in one line what a large export will take, before it starts.

    Raises:
        LmmpruneError: Anything that the user can mend; nothing is left behind then.
    """
    require("onnx_ir", "export")
    from lmmprune.compiler.data.calibration import load_calibration
    from lmmprune.compiler.export.count_tokens import measure_counts, save_counts
    from lmmprune.compiler.export.fingerprint import fingerprint
    from lmmprune.compiler.export.preflight import Calibration, calibration_needs, needs
    from lmmprune.compiler.lower.lower import lower
    from lmmprune.compiler.onnx_files.bucket_graphs import write_bucket_graphs
    from lmmprune.compiler.onnx_files.write_graphs import write_graphs
    from lmmprune.compiler.quantize.quantize import quantize
    from lmmprune.models.canonical import canonical_graphs
    from lmmprune.models.facts import facts_of
    from lmmprune.passes.graph.count_flops import count_flops
    from lmmprune.passes.graph.shapes import bind_dims
    from lmmprune.passes.graph.specialize import specialize
    from lmmprune.passes.int8.int8 import SCHEMES
    from lmmprune.passes.lower.cast_float import CastFloat
    from lmmprune.passes.lower.freeze_shapes import FreezeShapes
    from lmmprune.passes.lower.static_cache import LENGTH, SCATTER_OPSET, StaticCache
    from lmmprune.passes.methods import get_method
    from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
    from lmmprune.passes.reduce.reduce_vision import ReduceVision
    from lmmprune.passes.reduce.schedule import average
    from lmmprune.passes.reduce.split_vision import split_vision

    started = time.perf_counter()
    clock = StepClock(progress)
    progress = clock.report
    # Everything that can be refused is refused before the first slow step.
    check_directory(request.output, BUNDLE, force=request.force)
    target = targets.resolve(request.target)
    dtype = dtype_of(target, request.dtype)
    method = get_method(request.method, dict(request.options), file=request.method_file)
    source = resolve(
        request.model,
        weights=request.weights,
        layers=request.layers,
        image_size=request.image_size,
        tiles=request.tiles,
        adapter=request.adapter,
    )
    facts = facts_of(source)
    # Pictures are looked at for the counts that the method would choose.
    auto, buckets = isinstance(request.tokens, Auto), isinstance(request.tokens, Buckets)
    if buckets:
        method = method.at_output_only()
    int8 = int8_of(request, target, dtype)
    # Pictures are needed for ranges, or for token counts.
    measures = (int8 is not None and SCHEMES[int8.scheme].calibrated) or auto or buckets
    data = load_calibration(source, request.calibration, request.calibration_samples) if measures else None
    # What the pictures decide is known only when the encoder has seen them; everything else can be refused now.
    counts = counts_of(request, method, facts)
    stages = method.plan(facts, max(counts)) if counts else ()
    positions, llm_positions = positions_of(
        request.positions,
        method,
        facts,
        not stages or not stages[0].site.in_decoder,
        rows=source.decoder.position_rows,
    )
    if request.static_cache is not None:
        entering = min((s.keep for s in stages if not s.site.in_decoder), default=facts.tokens)
        check_cache(request.static_cache, target, entering, source.decoder.max_positions)
        target = dataclasses.replace(target, opset=max(target.opset, SCATTER_OPSET))
    warnings = list(source.remarks)

    calibration = Calibration()
    if int8 is not None and data:
        calibration = calibration_needs(source, len(data.samples), scan=int8.policy == "auto", smooth=int8.smooth)
    required = needs(
        source,
        request.output.resolve(),
        dtype=dtype,
        int8=int8 is not None,
        shared=request.share_weights,
        calibration=calibration,
    )
    if required.notable:
        announce(f"{source.name}: {required}")
    required.check(request.output)

    with write_bundle(request.output, resume=request.resume, force=request.force) as writer:
        assets = write_assets(source, writer.path, request.template)
        prompt = assets.prompt
        warnings.extend(assets.warnings)
        likely = stages if counts else method.stages_for(facts, facts.tokens)
        text = text_layout(prompt, writer.path / TOKENIZER, in_decoder=any(s.site.in_decoder for s in likely))
        progress("trace", 0, 1)
        if traced is not None:
            graphs = traced(source)
        else:
            graphs = canonical_graphs(
                source,
                image_token_id=prompt.image_token_id,
                next_layer=method.next_layer and bool(stages),
                cache=request.cache,
            )
        warnings.extend(graphs.remarks)
        own: DynamicCounts | None = None
        if data and (auto or buckets):
            own = measure_counts(
                graphs.vision,
                method,
                facts,
                data,
                writer.path,
                percentile=(request.tokens if isinstance(request.tokens, Auto) else Auto()).percentile,
                progress=progress,
            )
            if auto:
                counts = (own.keep,)
                stages = method.stages_for(facts, own.keep)
            save_counts(own, writer.path, marks=counts)
        image_tokens = min((s.keep for s in stages if not s.site.in_decoder), default=facts.tokens)
        before = {
            "vision": count_flops(graphs.vision),
            "prefill": count_flops(graphs.decoder, {"seq": facts.tokens + TEXT_TOKENS, "past": 0}),
        }

        progress("prune", 0, 1)
        heads: dict[int, ir.Model] = {}
        if buckets:
            encoder, heads = split_vision(graphs.vision, method, facts.grid, counts)
            graphs = dataclasses.replace(graphs, vision=encoder)
        else:
            bind_dims(graphs.decoder, {"image_tokens": image_tokens})
            ReduceVision(
                method=method.name,
                stages=stages,
                grid=facts.grid,
                tiles=facts.tiles,
                separators=facts.separators,
            )(graphs.vision)
        FreezeShapes()(graphs.vision)
        reduce_decoder = ReduceDecoder(
            method=method.name,
            stages=stages,
            image_tokens=image_tokens,
            prefix=text.prefix,
            positions=llm_positions,
            special_ids=text.special_ids,
        )
        reduce_decoder(graphs.decoder)
        prefill = specialize(graphs.decoder, seq=image_tokens + TEXT_TOKENS, image_tokens=image_tokens)
        after = {
            "vision": count_flops(graphs.vision) + (count_flops(heads[max(heads)]) if heads else 0),
            "prefill": count_flops(prefill),
        }

        manifest = Manifest(
            model=source.name,
            family=source.family.name,
            source=str(source.directory or "built-in configuration"),
            weights="dummy" if source.dummy else "checkpoint",
            # Nothing removed is the unpruned model, whatever the method.
            method=method.name if stages or heads else None,
            parameters=method.parameters if stages or heads else {},
            schedule=schedule_of(stages, facts.tokens) or largest_of(heads, facts.tokens),
            positions=positions,
            llm_positions=llm_positions,
            precision=Precision(dtype=dtype, int8=int8.scheme if int8 else None),
            target=target.name,
            opset=target.opset,
            image_tokens=image_tokens,
            requested_tokens=counts[-1],
            average_tokens=average([(stage.site, stage.keep) for stage in stages], facts),
            prefix=text.prefix,
            grid=source.vision.grid,
            tiles=source.tiles,
            adapter=str(source.adapter.resolve()) if source.adapter else None,
            vision=signature("vision.onnx", graphs.vision),
            decoder=signature("decoder.onnx", graphs.decoder),
            cache=cache_of(source, reduce_decoder.removed_before(source.decoder.layers)),
            prompt=prompt,
            generation={"applied": assets.generation.applied, "ignored": assets.generation.ignored},
            max_positions=source.decoder.max_positions,
            flops={part: {"before": before[part], "after": after[part]} for part in before},
            tools=_tools(),
            created=_now(),
        )
        if int8:
            found = quantize(
                graphs,
                manifest,
                writer.path,
                data,
                int8,
                progress,
                weights=fingerprint(request, source, manifest.tools, data, None),
                check=functools.partial(refuse_damage, source),
            )
            record = int8.record(data, found) if data else {"policy": "all"}
            manifest = dataclasses.replace(
                manifest, precision=Precision(dtype=dtype, int8=int8.scheme, calibration=record)
            )
            warnings.extend(data.warnings if data else ())
        if dtype != "float32":
            progress("cast", 0, 1)
            for model in (graphs.vision, graphs.decoder, *heads.values()):
                CastFloat(dtype=dtype)(model)
        progress("lower", 0, 1)
        if request.static_cache is not None:
            removed = reduce_decoder.removed_before(source.decoder.layers)
            StaticCache(past=manifest.cache.past, capacity=request.static_cache, removed=tuple(removed))(graphs.decoder)
            fixed = dataclasses.replace(manifest.cache, capacity=request.static_cache, length=LENGTH)
            manifest = dataclasses.replace(manifest, cache=fixed)
        for model in (graphs.vision, graphs.decoder, *heads.values()):
            lower(model, target)
        manifest = dataclasses.replace(
            manifest,
            vision=signature("vision.onnx", graphs.vision),
            decoder=signature("decoder.onnx", graphs.decoder),
        )
        if heads:
            stored = write_bucket_graphs(heads, writer.path)
            manifest = dataclasses.replace(
                manifest, buckets=tuple(Bucket(tokens=count, head=head) for count, head in sorted(stored.items()))
            )
        key = fingerprint(request, source, manifest.tools, data, manifest.precision.calibration)
        parts = {"vision": graphs.vision, "decoder": graphs.decoder}
        streamed = write_graphs(parts, writer.path, source, key=key, shared=request.share_weights, progress=progress)
        manifest = writer.finish(manifest, streamed, progress)
    if source.dummy:
        warnings.append("the weights are synthetic: use the bundle for latency, memory and size, not for answers")
    return Report(
        manifest=manifest,
        seconds=time.perf_counter() - started,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        warnings=tuple(warnings),
        steps=clock.seconds(),
        counts=own,
    )


def _now() -> str:
    """Return the time in UTC, or the one that reproducible builds set."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(given), timezone.utc) if given.isdigit() else datetime.now(timezone.utc)
    return now.isoformat(timespec="seconds")


def _tools() -> dict[str, str]:
    return {"lmmprune": __version__} | {name: importlib.metadata.version(name) for name in _TOOLS}
