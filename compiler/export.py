"""The main job: from a model to a bundle with pruned, optionally quantized graphs for one target."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import lmmprune
from lmmprune.compiler import targets
from lmmprune.compiler.assets import write_assets
from lmmprune.compiler.bundle import TOKENIZER
from lmmprune.compiler.flops import TEXT_TOKENS
from lmmprune.compiler.manifest import Bucket, Cache, Manifest, Precision, Stage
from lmmprune.compiler.signature import signature
from lmmprune.compiler.text_layout import text_layout
from lmmprune.compiler.write_bundle import write_bundle
from lmmprune.errors import InputError, TargetError, require
from lmmprune.models.source import Source, resolve

if TYPE_CHECKING:
    import onnx_ir as ir

    from lmmprune.compiler.canonical import Canonical
    from lmmprune.compiler.own_counts import OwnCounts
    from lmmprune.passes.methods import Method
    from lmmprune.passes.schedule import Facts
    from lmmprune.passes.stage import Stage as PruningStage

_TOOLS = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; see ``lmmprune export --help``."""

    model: str
    output: Path
    method: str = "freepruner"
    options: Mapping[str, str] = field(default_factory=dict)
    ratio: float | None = None
    keep: int | None = None
    int8: bool = False
    calibration: Path | None = None
    calibration_samples: int = 32
    dtype: str | None = None
    target: str = "ort-cpu"
    positions: str | None = None
    weights: str = "auto"
    layers: int | None = None
    method_file: Path | None = None
    auto: bool = False
    percentile: float = 90.0
    buckets: tuple[float, ...] = ()

    @property
    def measures(self) -> bool:
        """Whether pictures are needed: for ranges, or for token counts."""
        return self.int8 or self.auto or bool(self.buckets)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was done: the manifest, seconds, peak memory in bytes, and what the user should know.

    ``counts`` are what the method itself would keep of each picture, with ``--ratio auto`` or ``--buckets``.
    """

    manifest: Manifest
    seconds: float
    peak_bytes: int
    warnings: tuple[str, ...]
    counts: OwnCounts | None = None


def export(
    request: Request,
    progress: Progress = lambda what, done, of: None,
    *,
    traced: Callable[[Source], Canonical] | None = None,
) -> Report:
    """Export a model into a bundle.

    Args:
        request: What to do.
        progress: Called with the step's name, what is done of it and how much there is.
        traced: Gives the model's canonical graphs, one layer beyond the features, where many bundles of one model are
            made (see ``canonical.shared_trace``); None traces.

    Raises:
        LmmpruneError: Anything that the user can mend; nothing is left behind then.
    """
    require("onnx_ir", "export")
    from lmmprune.compiler.calibration_data import load_calibration
    from lmmprune.compiler.canonical import canonical_graphs
    from lmmprune.compiler.facts import facts_of
    from lmmprune.compiler.heads import write_heads
    from lmmprune.compiler.own_counts import measure_counts, save_counts
    from lmmprune.compiler.quantize import quantize
    from lmmprune.passes.cast_float import CastFloat
    from lmmprune.passes.count_flops import count_flops
    from lmmprune.passes.freeze_shapes import FreezeShapes
    from lmmprune.passes.methods import get_method
    from lmmprune.passes.reduce_decoder import ReduceDecoder
    from lmmprune.passes.reduce_vision import ReduceVision
    from lmmprune.passes.schedule import average
    from lmmprune.passes.shapes import bind_dims
    from lmmprune.passes.specialize import specialize
    from lmmprune.passes.split_vision import split_vision

    started = time.perf_counter()
    # Everything that can be refused is refused before the first slow step.
    target = targets.resolve(request.target)
    dtype = _dtype(target, request.dtype)
    method = get_method(request.method, dict(request.options), file=request.method_file)
    source = resolve(request.model, weights=request.weights, layers=request.layers)
    facts = facts_of(source)
    if request.buckets:
        method = method.at_output_only()
    data = load_calibration(source, request.calibration, request.calibration_samples) if request.measures else None
    # What the pictures decide is known only when the encoder has seen them; everything else can be refused now.
    counts = _counts(request, method, facts)
    stages = method.plan(facts, max(counts)) if counts else ()
    positions, llm_positions = _positions(request.positions, method, not stages or not stages[0].site.in_decoder)
    warnings = []

    with write_bundle(request.output) as writer:
        prompt = write_assets(source, writer.path)
        likely = stages if counts else method.stages_for(facts, facts.tokens)
        text = text_layout(prompt, writer.path / TOKENIZER, in_decoder=any(s.site.in_decoder for s in likely))
        progress("trace", 0, 1)
        if traced is not None:
            graphs = traced(source)
        else:
            graphs = canonical_graphs(
                source, image_token_id=prompt.image_token_id, beyond=method.beyond and bool(stages)
            )
        own: OwnCounts | None = None
        if data and (request.auto or request.buckets):
            own = measure_counts(
                graphs.vision,
                method,
                facts.grid,
                data,
                writer.path,
                percentile=request.percentile,
                progress=progress,
            )
            if request.auto:
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
        if request.buckets:
            encoder, heads = split_vision(graphs.vision, method, facts.grid, counts)
            graphs = dataclasses.replace(graphs, vision=encoder)
        else:
            bind_dims(graphs.decoder, {"image_tokens": image_tokens})
            ReduceVision(method=method.name, stages=stages, grid=facts.grid)(graphs.vision)
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
            schedule=_schedule(stages, facts.tokens) or _largest(heads, facts.tokens),
            positions=positions,
            llm_positions=llm_positions,
            precision=Precision(dtype=dtype, int8=target.int8 if request.int8 else None),
            target=target.name,
            opset=target.opset,
            image_tokens=image_tokens,
            requested_tokens=counts[-1],
            average_tokens=average([(stage.site, stage.keep) for stage in stages], facts),
            prefix=text.prefix,
            grid=source.vision.grid,
            vision=signature("vision.onnx", graphs.vision),
            decoder=signature("decoder.onnx", graphs.decoder),
            cache=_cache(source, reduce_decoder.removed_before(source.decoder.layers)),
            prompt=prompt,
            max_positions=source.decoder.max_positions,
            flops={part: {"before": before[part], "after": after[part]} for part in before},
            tools=_tools(),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        if data and request.int8:
            quantize(graphs, manifest, writer.path, data, target.int8, progress)
            manifest = dataclasses.replace(
                manifest,
                precision=Precision(
                    dtype=dtype,
                    int8=target.int8,
                    calibration={"source": data.source, "samples": len(data.samples), "method": "min-max"},
                ),
            )
            if data.generic:
                warnings.append(
                    f"INT8 ranges come from {len(data.samples)} {data.source}; give --calib with pictures of your own"
                )
        if dtype != "float32":
            progress("cast", 0, 1)
            for model in (graphs.vision, graphs.decoder, *heads.values()):
                CastFloat(dtype=dtype)(model)
        manifest = dataclasses.replace(
            manifest,
            vision=signature("vision.onnx", graphs.vision),
            decoder=signature("decoder.onnx", graphs.decoder),
        )
        if heads:
            stored = write_heads(heads, writer.path)
            manifest = dataclasses.replace(
                manifest, buckets=tuple(Bucket(tokens=count, head=head) for count, head in sorted(stored.items()))
            )
        for part, model in (("vision", graphs.vision), ("decoder", graphs.decoder)):
            _save(model, writer.path / f"{part}.onnx", functools.partial(progress, f"write {part}"))
        manifest = writer.finish(manifest)
    if source.dummy:
        warnings.append("the weights are synthetic: use the bundle for latency, memory and size, not for answers")
    return Report(
        manifest=manifest,
        seconds=time.perf_counter() - started,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        warnings=tuple(warnings),
        counts=own,
    )


def _dtype(target: targets.Target, dtype: str | None) -> str:
    if not {"Attention", "RMSNormalization", "RotaryEmbedding"} <= target.native_ops:
        raise TargetError(
            f"target '{target.name}' takes no Attention operator, and lowering to primitives isn't there yet:"
            f" export for {', '.join(t.name for t in targets.TARGETS.values() if t.takes('Attention'))}"
        )
    dtype = dtype or target.dtype
    if dtype not in target.dtypes:
        raise InputError(f"--dtype {dtype}: target '{target.name}' takes {', '.join(target.dtypes)}")
    return dtype


def _counts(request: Request, method: Method, facts: Facts) -> tuple[int, ...]:
    """Return the visual tokens per decoder layer that were asked for, ascending; none if the pictures decide."""
    from lmmprune.passes.methods import keep_count

    if not (request.auto or request.buckets):
        return (keep_count(facts.tokens, ratio=request.ratio, keep=request.keep),)
    asked = "--ratio auto" if request.auto else "--buckets"
    if request.keep is not None or request.ratio is not None or (request.auto and request.buckets):
        raise InputError("--ratio, --keep, --ratio auto and --buckets exclude each other: give one")
    if not method.counts_itself:
        raise InputError(f"{asked}: method '{method.name}' has no count of its own for a picture; use 'inflection'")
    if not 0 < request.percentile <= 100:
        raise InputError(f"--percentile {request.percentile:g}: expected 0 < percentile <= 100")
    if request.auto:
        method.check(facts)
        return ()
    if request.int8:
        raise InputError("--buckets and --int8 don't go together yet: leave one out")
    return tuple(sorted({keep_count(facts.tokens, ratio=ratio) for ratio in request.buckets}))


def _positions(asked: str | None, method: Method, in_vision: bool) -> tuple[str, str]:
    """Return the policy of the sequence that enters the decoder, and of the cuts inside it."""
    if asked not in (None, "contiguous", "original"):
        raise InputError(f"--positions {asked}: expected 'contiguous' or 'original'")
    if asked == "original" and in_vision and not method.has_places:
        raise InputError(
            f"--positions original: method '{method.name}' makes tokens that have the place of no patch; leave it out"
        )
    # Before the decoder, methods number what is left anew; inside it each has its own way.
    return asked or "contiguous", asked or method.positions


def _largest(heads: Mapping[int, ir.Model], tokens: int) -> tuple[Stage, ...]:
    """Return the schedule of heads of which the largest keeps every token."""
    return (Stage(site="vision_output", tokens_in=tokens, tokens_out=tokens),) if heads else ()


def _schedule(stages: Sequence[PruningStage], tokens: int) -> tuple[Stage, ...]:
    rows = []
    for stage in stages:
        rows.append(Stage(site=str(stage.site), tokens_in=tokens, tokens_out=stage.keep, text_removed=stage.prune_text))
        tokens = stage.keep
    return tuple(rows)


def _cache(source: Source, removed: Sequence[int]) -> Cache:
    from lmmprune.models.trace import cache_names

    spec = source.decoder
    past, present = cache_names(spec.layers)
    return Cache(
        past=tuple(past),
        present=tuple(present),
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        length_offsets=tuple(-count for count in removed),
    )


def _save(model: ir.Model, path: Path, progress: Callable[[int, int], None]) -> None:
    """Stream a graph and its weights to disk, one tensor in memory at a time."""
    import onnx_ir as ir

    ir.save(
        model,
        path,
        external_data=f"{path.name}.data",
        callback=lambda tensor, info: progress(info.index + 1, info.total),
        # A whole number of pages and of Windows' 64 KiB: runtimes map such tensors instead of copying them.
        alignment=65536,
    )


def _tools() -> dict[str, str]:
    return {"lmmprune": lmmprune.__version__} | {name: importlib.metadata.version(name) for name in _TOOLS}
