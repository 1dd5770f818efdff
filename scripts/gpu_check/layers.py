"""Stages ``*-7b``: decoder layers at LLaVA-7B's width with synthetic weights: prefill and decode by ratio and type.

Pruning at the vision output shortens the sequence that enters the decoder and nothing else, so that one decoder serves
every ratio: at fewer tokens. (A bundle that is exported pruned is tuned for its own length; these are all tuned for
the unpruned one.) The vision tower is timed with and without the selection, and the unpruned prompt also with a
key/value cache of fixed length, with which an engine takes a decode step as one CUDA graph. What is timed is also
compared with ONNX Runtime on the CPU (``layers_parity``). A variant that breaks is listed, and the others go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gpu_check.backends import built, bundle_of, usable, versions
from gpu_check.findings import Findings
from gpu_check.layers_parity import decoder_parity, vision_parity
from gpu_check.settings import ANSWER_TOKENS, RATIOS, TEXT_TOKENS, Save, Settings, length, variant_name
from gpu_check.timing import Run, interleaved
from lmmprune.compiler.backends.engine_session import EngineSession
from lmmprune.compiler.backends.open_sessions import open_sessions
from lmmprune.compiler.backends.session import Session
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.manifest import Tensor
from lmmprune.compiler.export.values import Int8, Ratio
from lmmprune.errors import TargetError

MODEL = "llava-1.5-7b"
PRUNED = "float pruned"
_FIXED = {"static_cache": length(0.0) + ANSWER_TOKENS}
# Fields of each bundle's export request; of the pruned one only the tower is run.
BUNDLES: dict[str, dict[str, Any]] = {
    "float": {},
    "int8": {"int8": Int8()},
    PRUNED: {"tokens": Ratio(RATIOS[1]), "layers": 1},
    "float fixed": _FIXED,
    "int8 fixed": {"int8": Int8(), **_FIXED},
}


Sessions = Mapping[str, tuple[Bundle, Mapping[str, Session]]]


def check(settings: Settings, save: Save, backend: str, model: str = MODEL) -> dict[str, Any]:
    """Return rows of times and the parity; what can't be made, timed or compared is listed with its reason.

    Raises:
        LmmpruneError: This machine can't run the back end, or nothing could be timed.
    """
    target = usable(backend)
    found = Findings(save, target=target.name, versions=versions(target), engines={}, rows=[], parity={})
    sessions: dict[str, tuple[Bundle, dict[str, Session]]] = {}
    for name, fields in BUNDLES.items():
        request = {"layers": settings.layers, "weights": "dummy", "calibration_samples": 2, "target": target.name}
        with found.guard(name):
            bundle = bundle_of(
                settings.work / f"{model}-{target.name}-{settings.layers}-{name.replace(' ', '-')}",
                model=model,
                **(request | fields),
            )
            found.data["engines"][name] = built(bundle, target)
            sessions[name] = (bundle, open_sessions(bundle))
            found.put()
    growing = {name: both for name, both in sessions.items() if both[0].manifest.cache.capacity is None}
    time_towers(settings, found, growing)
    decoders = {name: both for name, both in sessions.items() if name != PRUNED}
    time_decoders(settings, found, decoders)
    found.put(
        cuda_graphs={
            f"{name} {component}": {"recorded": session.recorded, "unrecorded": session.unrecorded}
            for name, (_, loaded) in sessions.items()
            for component, session in loaded.items()
            if isinstance(session, EngineSession)
        }
    )
    compare(found, decoders)
    if not found.data["rows"]:
        reasons = "; ".join(f"{part}: {reason}" for part, reason in found.data["reasons"].items())
        raise TargetError(f"nothing could be timed: {reasons}")
    return found.data


def time_towers(settings: Settings, found: Findings, sessions: Sessions) -> None:
    """Time the vision graphs in turns."""
    runs = {}
    for name, (bundle, loaded) in sessions.items():
        with found.guard(f"{name}, vision"):
            runs[f"{name}, vision"] = vision_run(bundle, loaded["vision"])
    times = interleaved(runs, settings.rounds, found.guard)
    found.put(vision_ms={name.removesuffix(", vision"): spread for name, spread in times.items()})


def time_decoders(settings: Settings, found: Findings, sessions: Sessions) -> None:
    """Time prefill and decode of every ratio and type, in turns; a row has those of the two that worked."""
    rows, prefills, decodes = [], {}, {}
    for name, (bundle, loaded) in sessions.items():
        int8, fixed = name.startswith("int8"), bundle.manifest.cache.capacity is not None
        for ratio in RATIOS[:1] if fixed else RATIOS:
            variant = variant_name(ratio, int8=int8, fixed=fixed)
            with found.guard(variant):
                prefills[f"{variant}, prefill"], decodes[f"{variant}, decode"] = decoder_runs(
                    bundle, loaded["decoder"], ratio
                )
                rows.append(
                    {
                        "variant": variant,
                        "ratio": ratio,
                        "int8": int8,
                        "fixed": fixed,
                        "tokens": length(ratio, bundle.manifest.image_tokens),
                        "weight_bytes": weights_read(bundle),
                    }
                )
    for key, runs in (("prefill_ms", prefills), ("decode_ms", decodes)):
        times = interleaved(runs, settings.rounds, found.guard)
        for row in rows:
            row[key] = times.get(f"{row['variant']}, {key.removesuffix('_ms')}")
        found.put(rows=[row for row in rows if row.get("prefill_ms") or row.get("decode_ms")])


def compare(found: Findings, sessions: Sessions) -> None:
    """Compare each type with ONNX Runtime on the CPU."""
    for name, (bundle, loaded) in sessions.items():
        parity = found.data["parity"].setdefault(name, {})
        # Towers don't differ by the decoder's cache.
        towers = {"vision": vision_parity} if bundle.manifest.cache.capacity is None else {}
        for component, measure in {**towers, "decoder": decoder_parity}.items():
            with found.guard(f"{name}, parity of {component}"):
                parity[component] = measure(bundle, loaded[component])
                found.put()


def vision_run(bundle: Bundle, session: Session) -> Run:
    """Return a run of the vision graph on random pixel values that are on the device."""
    tensor = bundle.manifest.vision.inputs[0]
    value = session.upload(np.random.default_rng(0).standard_normal(tensor.shape).astype(tensor.dtype))  # type: ignore[arg-type]  # static
    return lambda: session.run({tensor.name: value})


def decoder_runs(bundle: Bundle, session: Session, ratio: float) -> tuple[Run, Run]:
    """Return a prefill of the prompt that a ratio leaves, and a decode step behind it."""
    manifest, rng = bundle.manifest, np.random.default_rng(0)
    tensors: dict[str, Tensor] = {tensor.name: tensor for tensor in manifest.decoder.inputs}
    tokens = length(ratio, manifest.image_tokens)
    features = tensors["image_features"]
    pictures = session.upload(rng.standard_normal(features.shape).astype(features.dtype))  # type: ignore[arg-type]  # static
    ids = np.full((1, tokens), 7, np.int64)
    ids[0, 5 : 5 + tokens - TEXT_TOKENS] = manifest.prompt.image_token_id

    def run(part: Any, start: int) -> Run:
        layout = manifest.cache
        shape = (1, layout.kv_heads, layout.capacity or start, layout.head_dim)
        past = {
            name: session.upload(rng.standard_normal(shape).astype(tensors[name].dtype))
            for pair in layout.past
            for name in pair
        }
        positions = np.arange(start, start + part.shape[1], dtype=np.int64)[None]
        feeds = {
            "input_ids": session.upload(part),
            "position_ids": session.upload(positions),
            "image_features": pictures,
            **past,
        }
        if layout.length is not None:
            feeds[layout.length] = session.upload(np.array([start], np.int64))
        return lambda: session.run(feeds)

    return run(ids, 0), run(ids[:, :1], tokens)


def weights_read(bundle: Bundle) -> int:
    """Return the bytes of the decoder's weights that a step reads: all but the table of embeddings."""
    manifest = bundle.manifest
    graph = manifest.decoder.file
    whole = sum(
        entry.bytes for name, entry in manifest.files.items() if name != graph and name.split(".")[0] == "decoder"
    )
    logits = manifest.decoder.outputs[0].shape[-1]
    features = {tensor.name: tensor for tensor in manifest.decoder.inputs}["image_features"]
    assert isinstance(logits, int)
    width = features.shape[-1]
    assert isinstance(width, int)
    return whole - logits * width * np.dtype(features.dtype).itemsize
