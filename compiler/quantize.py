"""INT8 for both graphs: calibrate the pruned float graphs on pictures and prompts, then write Q/DQ into them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from tokenizers import Tokenizer

from lmmprune.compiler.bundle import PREPROCESSOR, TOKENIZER
from lmmprune.compiler.calibrate import Feeds, calibrate
from lmmprune.compiler.calibration_data import CalibrationSet
from lmmprune.compiler.canonical import Canonical
from lmmprune.compiler.manifest import Manifest
from lmmprune.compiler.preprocess import Preprocessor
from lmmprune.compiler.prompt import Prompter
from lmmprune.errors import require
from lmmprune.passes.insert_qdq import InsertQdq, activations

Progress = Callable[[str, int, int], None]


def quantize(
    graphs: Canonical, manifest: Manifest, assets: Path, data: CalibrationSet, scheme: str, progress: Progress
) -> None:
    """Quantize both graphs in place.

    Args:
        graphs: Pruned float32 graphs.
        manifest: Of the bundle in the making: prompt, positions, cache layout, and the type to cast to later.
        assets: Directory with the tokenizer and the preprocessor.
        data: What to calibrate on.
        scheme: Name in ``SCHEMES``.
        progress: Called with what is done, how much of it, and how much there is.
    """
    # Beside the bundle in the making: a place with room for the weights, which /tmp need not be.
    with tempfile.TemporaryDirectory(dir=assets.parent, prefix=f"{assets.name}.calibration.") as name:
        work = Path(name)
        for part, model in (("vision", graphs.vision), ("decoder", graphs.decoder)):
            progress(f"write float {part}", 0, 1)
            ir.save(model, work / f"{part}.onnx", external_data=f"{part}.onnx.data")
        feeds = _Feeds(manifest, assets, data, work)
        for part, model, stream in (
            ("vision", graphs.vision, feeds.vision),
            ("decoder", graphs.decoder, feeds.decoder),
        ):
            count = 0

            def done(part: str = part) -> None:
                nonlocal count
                count += 1
                progress(f"calibrate {part}", count, len(data.samples))

            ranges = calibrate(work / f"{part}.onnx", activations(model, scheme), stream(), done=done)
            InsertQdq(scheme=scheme, ranges=ranges, dtype=manifest.precision.dtype)(model)


class _Feeds:
    """The inputs of both graphs for every sample; the answer is appended, so that decode steps are covered too."""

    def __init__(self, manifest: Manifest, assets: Path, data: CalibrationSet, work: Path) -> None:
        self._manifest = manifest
        self._data = data
        self._work = work
        self._preprocess = Preprocessor.load(assets / PREPROCESSOR)
        self._prompter = Prompter(manifest, assets / TOKENIZER)
        self._tokenizer = Tokenizer.from_file(str(assets / TOKENIZER))

    def vision(self) -> Iterator[Feeds]:
        for sample in self._data.samples:
            yield {"pixel_values": self._preprocess(sample.image)}

    def decoder(self) -> Iterator[Feeds]:
        ort = require("onnxruntime", "export")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(str(self._work / "vision.onnx"), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        for sample, feed in zip(self._data.samples, self.vision(), strict=True):
            found = dict(zip(names, session.run(names, feed), strict=True))
            yield self._prompt_feed(sample.prompt, sample.answer, found)

    def _prompt_feed(self, prompt: str, answer: str, found: dict[str, Any]) -> Feeds:
        encoded = self._prompter.encode(prompt)
        kept = found["kept_indices"][0] if "kept_indices" in found else None
        positions = self._prompter.positions(encoded, kept)
        tail = np.array([self._tokenizer.encode(answer, add_special_tokens=False).ids if answer else []], np.int64)
        after = positions[:, -1:] + 1 + np.arange(tail.shape[1], dtype=np.int64)
        cache = self._manifest.cache
        empty = np.zeros((1, cache.kv_heads, 0, cache.head_dim), np.float32)
        return {
            "input_ids": np.concatenate([encoded.input_ids, tail], axis=1),
            "position_ids": np.concatenate([positions, after], axis=1),
            "image_features": found["image_features"],
            **{name: empty for pair in cache.past for name in pair},
        }
