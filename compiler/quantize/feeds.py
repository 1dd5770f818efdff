"""The inputs of both graphs for every sample: the picture, then the prompt, then the answer token by token."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lmmprune.compiler.bundle.bundle import PREPROCESSOR, TOKENIZER, file_sha256
from lmmprune.compiler.bundle.interface import Interface
from lmmprune.compiler.data.calibration import CalibrationSet, Sample
from lmmprune.compiler.quantize.cache import graph_sha256
from lmmprune.compiler.quantize.observe import Feeds, Steps
from lmmprune.compiler.runtime.kv_cache import KvCache
from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.compiler.runtime.prompt import Prompter
from lmmprune.errors import require
from lmmprune.stored import Array

ANSWER_TOKENS = 64
"""Decode steps per sample at most: later ones cost as much and show nothing new."""

OWN_TOKENS = 4
"""Decode steps of a sample without an answer: the model's own, greedy tokens."""


class SampleFeeds:
    """Both graphs' runs for each sample, as ``observe.Steps`` that start when they are called.

    The decoder runs as it does for users: the prompt in one prefill over an empty cache, then one token per run on the
    cache that the run before left, which behind a cut is shorter.
    """

    def __init__(self, interface: Interface, assets: Path, data: CalibrationSet, vision: Path) -> None:
        """Open tokenizer and preprocessor.

        Args:
            interface: Prompt, positions and cache layout.
            assets: Directory with the tokenizer and the preprocessor.
            data: The samples.
            vision: The float32 vision graph, whose features the decoder is fed.
        """
        self._interface = interface
        self._assets = assets
        self._data = data
        self._graph = vision
        self._preprocess = Preprocessor.load(assets / PREPROCESSOR)
        self._prompter = Prompter(interface, assets / TOKENIZER)
        self._tokenizer = Tokenizer.from_file(str(assets / TOKENIZER))

    def vision(self) -> list[Callable[[], Steps]]:
        """Return one run of the vision graph per sample."""
        return [functools.partial(self._look, sample) for sample in self._data.samples]

    def decoder(self) -> list[Callable[[], Steps]]:
        """Return the runs of the decoder per sample, prefill and decode steps."""
        return [functools.partial(self._converse, sample) for sample in self._data.samples]

    def script(self) -> list[list[dict[str, Array]]]:
        """Return for every sample the decoder's inputs without the cache: of the prefill, then of each decode step.

        What a step is fed with must be known before any ran, so a sample without an answer is its prefill alone.
        """
        return [self._steps(sample) for sample in self._data.samples]

    def digest(self) -> str:
        """Return the SHA-256 of everything that the runs depend on, apart from the graph that runs them."""
        interface = self._interface
        parts = {
            "data": self._data.digest(),
            "vision": graph_sha256(self._graph),
            "tokenizer": file_sha256(self._assets / TOKENIZER),
            "preprocessor": file_sha256(self._assets / PREPROCESSOR),
            "prompt": dataclasses.asdict(interface.prompt),
            "positions": [
                interface.positions,
                interface.image_tokens,
                interface.tokens_before,
                interface.max_positions,
            ],
            "steps": [ANSWER_TOKENS, OWN_TOKENS],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _look(self, sample: Sample) -> Steps:
        yield self._pixels(sample)

    def _pixels(self, sample: Sample) -> Feeds:
        return {self._interface.vision.inputs[0].name: self._preprocess(sample.image)}

    def _converse(self, sample: Sample) -> Steps:
        names = [output.name for output in self._session.get_outputs()]
        found = dict(zip(names, self._session.run(names, self._pixels(sample)), strict=True))
        prompt = self._prompter.encode(sample.prompt)
        ids = prompt.input_ids
        positions = self._prompter.positions(prompt, found["kept_indices"][0] if "kept_indices" in found else None)
        answer = self._tokenizer.encode(sample.answer, add_special_tokens=False).ids if sample.answer else []
        room = self._prompter.room(prompt, positions)
        cache = KvCache[Array](self._interface, lambda array: array)
        for step in range(min(room, len(answer) or OWN_TOKENS, ANSWER_TOKENS) + 1):
            outputs = yield {
                "input_ids": ids,
                "image_features": found["image_features"],
                "position_ids": positions,
                **cache.feeds(),
            }
            token = answer[step : step + 1] or [int(outputs["logits"][0, -1].argmax())]
            if not answer and token[0] in self._interface.prompt.eos_token_ids:
                return
            cache.take(outputs, tokens=ids.shape[1])
            ids = np.array([token], np.int64)
            positions = positions[..., -1:] + 1

    def _steps(self, sample: Sample) -> list[dict[str, Array]]:
        names = [output.name for output in self._session.get_outputs()]
        found = dict(zip(names, self._session.run(names, self._pixels(sample)), strict=True))
        prompt = self._prompter.encode(sample.prompt)
        positions = self._prompter.positions(prompt, found["kept_indices"][0] if "kept_indices" in found else None)
        answer = self._tokenizer.encode(sample.answer, add_special_tokens=False).ids if sample.answer else []
        room = self._prompter.room(prompt, positions)
        steps = [{"input_ids": prompt.input_ids, "position_ids": positions}]
        for token in answer[: min(room, ANSWER_TOKENS)]:
            positions = positions[..., -1:] + 1
            steps.append({"input_ids": np.array([[token]], np.int64), "position_ids": positions})
        return [{**step, "image_features": found["image_features"]} for step in steps]

    @functools.cached_property
    def _session(self) -> Any:
        ort = require("onnxruntime", "export")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        return ort.InferenceSession(str(self._graph), options, providers=["CPUExecutionProvider"])
