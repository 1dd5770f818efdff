"""Check a bundle: well-formed graphs, untouched files, and the same answers as the PyTorch model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmmprune.compiler.backends.onnxruntime import TARGETS
from lmmprune.compiler.bundle import PREPROCESSOR, TOKENIZER, Bundle
from lmmprune.compiler.calibration_data import Sample, load_calibration
from lmmprune.compiler.manifest import Manifest
from lmmprune.compiler.preprocess import Preprocessor
from lmmprune.compiler.prompt import Prompter
from lmmprune.errors import BundleError, require
from lmmprune.models.source import Source, resolve

Array = np.ndarray[Any, Any]

# Float32 must agree to 1e-4 of the reference's largest logit, and in every kept index. Half precision and INT8 round on
# purpose: there the direction of the logits must agree, and the overlap of the kept sets is reported.
EXACT = 1e-4
COSINE = {"float32": 0.9999, "float16": 0.999, "bfloat16": 0.99, "int8": 0.95}
STEPS = 8


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was checked: what, whether it held, and the figures."""

    name: str
    passed: bool
    found: str


def verify(path: Path, *, samples: int = 4, progress: Callable[[str, int, int], None]) -> list[Check]:
    """Check a bundle.

    Args:
        path: The bundle.
        samples: Pictures with questions to compare on.
        progress: Called with the step, what is done and how much there is.

    Returns:
        The checks, failed ones included.

    Raises:
        LmmpruneError: The bundle can't be opened at all, or its model isn't here any more.
    """
    onnx = require("onnx", "export")
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    checks = []
    progress("checksums", 0, 1)
    try:
        bundle.verify_checksums()
        checks.append(Check(name="checksums", passed=True, found=f"{len(manifest.files)} files"))
    except BundleError as error:
        # Nothing else about an edited bundle means anything.
        return [Check(name="checksums", passed=False, found=str(error))]
    for graph in (bundle.vision, bundle.decoder):
        progress(f"checker {graph.name}", 0, 1)
        try:
            onnx.checker.check_model(str(graph), full_check=True)
            checks.append(Check(name=f"checker {graph.name}", passed=True, found=f"opset {manifest.opset}"))
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            checks.append(Check(name=f"checker {graph.name}", passed=False, found=str(error).splitlines()[0]))
    progress("load the PyTorch model", 0, 1)
    return checks + _parity(bundle, _source(manifest), samples, progress)


def _source(manifest: Manifest) -> Source:
    dummy = manifest.weights == "dummy"
    where = manifest.model if dummy or manifest.model == "tiny-llava" else manifest.source
    return resolve(where, weights="dummy" if dummy else "auto", layers=len(manifest.cache.past) if dummy else None)


def _parity(bundle: Bundle, source: Source, samples: int, progress: Callable[[str, int, int], None]) -> list[Check]:
    from lmmprune.compiler.reference import Reference

    manifest = bundle.manifest
    reference = Reference(source, manifest)
    engine = _Engine(bundle)
    data = load_calibration(source, None, samples).samples
    overlaps, worst, cosines = [], 0.0, []
    for index, sample in enumerate(data):
        pixels = engine.preprocess(sample.image)
        seen = reference.see(pixels)
        features, kept = engine.see(pixels)
        overlaps.append(len(set(kept) & set(seen.kept.tolist())) / len(set(kept) | set(seen.kept.tolist())))
        # The decoder is compared on the kept set of the engine: a near-tie that rounding flipped was counted above.
        for found, expected in engine.compare(sample, features, kept, seen.features[kept], reference):
            worst = max(worst, float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max())))
            cosines.append(float(found @ expected / (np.linalg.norm(found) * np.linalg.norm(expected))))
        progress("compare", index + 1, len(data))
    precision = "int8" if manifest.precision.int8 else manifest.precision.dtype
    exact = precision == "float32"
    iou, cosine = min(overlaps), min(cosines)
    return [
        Check(
            name="kept indices",
            passed=iou == 1.0 or not exact,
            found=f"IoU {np.mean(overlaps):.4f} (lowest {iou:.4f}) over {len(data)} pictures",
        ),
        Check(
            name="logits",
            passed=bool(np.isfinite(worst)) and cosine >= COSINE[precision] and (worst <= EXACT or not exact),
            found=f"largest relative difference {worst:.2e}, lowest cosine {cosine:.6f},"
            f" prefill and {STEPS} decode steps",
        ),
    ]


class _Engine:
    """The bundle's graphs, run one call at a time on ONNX Runtime's CPU provider, whatever the target."""

    def __init__(self, bundle: Bundle) -> None:
        ort = require("onnxruntime", "export")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if bundle.manifest.target not in TARGETS:
            # Graphs for a compiler are plain ONNX: without ORT's own fusions they are computed as they are written.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self._manifest = bundle.manifest
        self._vision, self._decoder = (
            ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
            for graph in (bundle.vision, bundle.decoder)
        )
        self.preprocess = Preprocessor.load(bundle.file(PREPROCESSOR))
        self._prompter = Prompter(bundle.manifest, bundle.file(TOKENIZER))

    def see(self, pixels: Array) -> tuple[Array, Array]:
        """Return ``image_features [1,K,C]`` and the kept indices ``[K]``."""
        names = [tensor.name for tensor in self._manifest.vision.outputs]
        feed = {"pixel_values": pixels.astype(self._manifest.vision.inputs[0].dtype)}
        found = dict(zip(names, self._vision.run(names, feed), strict=True))
        kept = found["kept_indices"][0] if "kept_indices" in found else np.arange(self._manifest.image_tokens)
        return found["image_features"], kept

    def compare(
        self, sample: Sample, features: Array, kept: Array, expected: Array, reference: Any
    ) -> list[tuple[Array, Array]]:
        """Generate greedily, then return (found, expected) logits of the prefill and of every step."""
        encoded = self._prompter.encode(sample.prompt)
        ids, positions = encoded.input_ids, self._prompter.positions(encoded, kept)
        cache = self._manifest.cache
        kind = next(tensor.dtype for tensor in self._manifest.decoder.inputs if tensor.name == cache.past[0][0])
        past = [np.zeros((1, cache.kv_heads, 0, cache.head_dim), kind)] * (2 * len(cache.past))
        feed_ids, feed_positions = ids, positions
        found = []
        for _ in range(STEPS + 1):
            feeds = {"input_ids": feed_ids, "position_ids": feed_positions, "image_features": features}
            feeds |= dict(zip([n for pair in cache.past for n in pair], past, strict=True))
            logits, *past = self._decoder.run(["logits", *(n for pair in cache.present for n in pair)], feeds)
            found.append(logits[0, -1].astype(np.float32))
            feed_ids = logits[:, -1:].argmax(-1)
            feed_positions = positions[:, -1:] + 1
            ids = np.concatenate([ids, feed_ids], axis=1)
            positions = np.concatenate([positions, feed_positions], axis=1)
        whole = reference.logits(ids[:, :-1], expected, positions[:, :-1])
        return list(zip(found, whole[-len(found) :], strict=True))
