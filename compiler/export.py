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
from lmmprune.compiler.assets import image_token_id, write_assets
from lmmprune.compiler.manifest import Cache, Graph, Manifest, Precision, Stage, Tensor
from lmmprune.compiler.write_bundle import write_bundle
from lmmprune.errors import InputError, TargetError, require
from lmmprune.models.source import Source, resolve

if TYPE_CHECKING:
    import onnx_ir as ir

# The convention of the literature: prefill of the visual tokens and 60 tokens of text.
TEXT_TOKENS = 60
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


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was done: the manifest, seconds, peak memory in bytes, and what the user should know."""

    manifest: Manifest
    seconds: float
    peak_bytes: int
    warnings: tuple[str, ...]


def export(request: Request, progress: Progress = lambda what, done, of: None) -> Report:
    """Export a model into a bundle.

    Args:
        request: What to do.
        progress: Called with the step's name, what is done of it and how much there is.

    Raises:
        LmmpruneError: Anything that the user can mend; nothing is left behind then.
    """
    require("onnx_ir", "export")
    from lmmprune.compiler.calibration_data import load_calibration
    from lmmprune.compiler.canonical import canonical_graphs
    from lmmprune.compiler.quantize import quantize
    from lmmprune.passes.cast_float import CastFloat
    from lmmprune.passes.count_flops import count_flops
    from lmmprune.passes.freeze_shapes import FreezeShapes
    from lmmprune.passes.methods import get_method, keep_count
    from lmmprune.passes.select_tokens import SelectTokens

    started = time.perf_counter()
    # Everything that can be refused is refused before the first slow step.
    target = targets.resolve(request.target)
    dtype = _dtype(target, request.dtype)
    method = get_method(request.method, dict(request.options))
    positions = _positions(request.positions or method.positions)
    source = resolve(request.model, weights=request.weights, layers=request.layers)
    tokens = source.vision.tokens
    keep = keep_count(tokens, ratio=request.ratio, keep=request.keep)
    data = load_calibration(source, request.calibration, request.calibration_samples) if request.int8 else None
    warnings = []

    with write_bundle(request.output) as writer:
        progress("trace", 0, 1)
        graphs = canonical_graphs(source, image_tokens=keep, image_token_id=image_token_id(source))
        prefill = {"seq": tokens + TEXT_TOKENS, "past": 0}
        before = {"vision": count_flops(graphs.vision), "prefill": count_flops(graphs.decoder, prefill)}

        progress("prune", 0, 1)
        SelectTokens(method=method, keep=keep)(graphs.vision)
        FreezeShapes()(graphs.vision)
        prefill = {"seq": keep + TEXT_TOKENS, "past": 0}
        after = {"vision": count_flops(graphs.vision), "prefill": count_flops(graphs.decoder, prefill)}

        manifest = Manifest(
            model=source.name,
            family=source.family.name,
            source=str(source.directory or "built-in configuration"),
            weights="dummy" if source.dummy else "checkpoint",
            # Nothing removed is the unpruned model, whatever the method.
            method=method.name if keep < tokens else None,
            parameters=method.parameters if keep < tokens else {},
            schedule=(Stage(site=method.site, tokens_in=tokens, tokens_out=keep),),
            positions=positions,
            precision=Precision(dtype=dtype, int8=target.int8 if data else None),
            target=target.name,
            opset=target.opset,
            image_tokens=keep,
            grid=source.vision.grid,
            vision=_signature("vision.onnx", graphs.vision),
            decoder=_signature("decoder.onnx", graphs.decoder),
            cache=_cache(source),
            prompt=write_assets(source, writer.path),
            max_positions=source.decoder.max_positions,
            flops={part: {"before": before[part], "after": after[part]} for part in before},
            tools=_tools(),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        if data:
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
            CastFloat(dtype=dtype)(graphs.vision)
            CastFloat(dtype=dtype)(graphs.decoder)
        manifest = dataclasses.replace(
            manifest,
            vision=_signature("vision.onnx", graphs.vision),
            decoder=_signature("decoder.onnx", graphs.decoder),
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


def _positions(policy: str) -> str:
    if policy not in ("contiguous", "original"):
        raise InputError(f"--positions {policy}: expected 'contiguous' or 'original'")
    return policy


def _cache(source: Source) -> Cache:
    from lmmprune.models.trace import cache_names

    spec = source.decoder
    past, present = cache_names(spec.layers)
    return Cache(
        past=tuple(past),
        present=tuple(present),
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        length_offsets=(0,) * spec.layers,
    )


def _signature(file: str, model: ir.Model) -> Graph:
    def tensors(values: Sequence[ir.Value]) -> tuple[Tensor, ...]:
        rows = []
        for value in values:
            assert value.shape is not None
            assert value.dtype is not None
            shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
            rows.append(Tensor(name=str(value.name), dtype=str(value.dtype.numpy()), shape=shape))
        return tuple(rows)

    return Graph(file=file, inputs=tensors(model.graph.inputs), outputs=tensors(model.graph.outputs))


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
