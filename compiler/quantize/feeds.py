"""The inputs of both graphs for every sample: the picture, then the prompt, then the answer token by token."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lmmprune.compiler.backends.cpu_session import cpu_session, run_all
from lmmprune.compiler.bundle.bundle import PREPROCESSOR, TOKENIZER, file_sha256
from lmmprune.compiler.bundle.interface import Interface
from lmmprune.compiler.data.calibration import CalibrationSet, Sample
from lmmprune.compiler.quantize.cache import graph_sha256
from lmmprune.compiler.runtime.decode_steps import Feeds, Outputs, Steps, decode_steps
from lmmprune.compiler.runtime.encoded import Encoded
from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.compiler.runtime.prompt import Prompter
from lmmprune.compiler.runtime.select_tokens import select_tokens
from lmmprune.names import IMAGE_FEATURES, INPUT_IDS, LOGITS, POSITION_IDS
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

    def __init__(
        self,
        interface: Interface,
        assets: Path,
        data: CalibrationSet,
        vision: Path,
        selection: Path | None = None,
        *,
        answers: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Open tokenizer and preprocessor.

        Args:
            interface: Prompt, positions and cache layout.
            assets: Directory with the tokenizer and the preprocessor.
            data: The samples.
            vision: The float32 vision graph, whose features the decoder is fed.
            selection: The float32 graph that chooses among them, where the interface has one.
            answers: For each sample the tokens that it is led through, instead of its own.
        """
        self._interface = interface
        self._assets = assets
        self._data = data
        self._graph = vision
        self._selection = selection
        self._answers = answers
        self._preprocess = Preprocessor.load(assets / PREPROCESSOR)
        self._prompter = Prompter(interface, assets / TOKENIZER)
        self._tokenizer = Tokenizer.from_file(str(assets / TOKENIZER))

    def vision(self) -> list[Callable[[], Steps]]:
        """Return the runs of the vision graph per sample: one, or one for each tile of its picture."""
        return [functools.partial(self._look, sample) for sample in self._data.samples]

    def decoder(self) -> list[Callable[[], Steps]]:
        """Return the runs of the decoder per sample, prefill and decode steps."""
        own: list[Sequence[int] | None] = [None] * len(self._data.samples)
        return [
            functools.partial(self._converse, sample, answer)
            for sample, answer in zip(self._data.samples, self._answers or own, strict=True)
        ]

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
            "selection": None if self._selection is None else graph_sha256(self._selection),
            "tokenizer": file_sha256(self._assets / TOKENIZER),
            "preprocessor": file_sha256(self._assets / PREPROCESSOR),
            "prompt": dataclasses.asdict(interface.prompt),
            "positions": [
                interface.positions,
                interface.image_tokens,
                interface.tokens_before,
                interface.max_positions,
                interface.images,
            ],
            "steps": [ANSWER_TOKENS, OWN_TOKENS],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _look(self, sample: Sample) -> Steps:
        # A list has no place for the outputs that are sent back.
        yield from (feeds for feeds in self._pixels(sample))

    def _pixels(self, sample: Sample) -> list[Feeds]:
        pixels = self._preprocess(sample.image)
        runs = [pixels] if self._interface.tile_grids is None else np.split(pixels, len(pixels))
        return [{self._interface.vision.inputs[0].name: run} for run in runs]

    def _converse(self, sample: Sample, led: Sequence[int] | None) -> Steps:
        start = self._start(sample)
        # A sample without an answer goes on with what it says itself; one that is led through nothing doesn't.
        answer = (start.answer or None) if led is None else led
        given = iter(answer or ())

        def choose(outputs: Outputs) -> int | None:
            token = next(given, None)
            if token is None:
                token = int(outputs[LOGITS][0, -1].argmax())
            return None if answer is None and token in self._interface.prompt.eos_token_ids else token

        runs = min(start.room, OWN_TOKENS if answer is None else len(answer), ANSWER_TOKENS) + 1
        return decode_steps(self._interface, start.prompt, start.positions, start.features, runs, choose)

    def _steps(self, sample: Sample) -> list[dict[str, Array]]:
        start = self._start(sample)
        positions = start.positions
        steps = [{INPUT_IDS: start.prompt.input_ids, POSITION_IDS: positions}]
        for token in start.answer[: min(start.room, ANSWER_TOKENS)]:
            positions = positions[..., -1:] + 1
            steps.append({INPUT_IDS: np.array([[token]], np.int64), POSITION_IDS: positions})
        return [{**step, IMAGE_FEATURES: start.features} for step in steps]

    def _start(self, sample: Sample) -> _Start:
        found = [run_all(self._session, feeds) for feeds in self._pixels(sample)]
        kept = [None if self._interface.kept is None else one[self._interface.kept][0] for one in found]
        picked = self._preprocess.pick(sample.image)
        asked = self._prompter.encode(sample.prompt, grids=None if picked is None else [picked.grid])
        entering = select_tokens(self._interface, self._choose, asked, [one[IMAGE_FEATURES] for one in found], kept)
        prompt = entering.prompt
        positions = self._prompter.positions(prompt, entering.kept)
        answer = self._tokenizer.encode(sample.answer, add_special_tokens=False).ids if sample.answer else []
        return _Start(
            prompt=prompt,
            positions=positions,
            features=entering.features,
            answer=answer,
            room=self._prompter.room(prompt, positions),
        )

    def _choose(self, feeds: Feeds) -> Outputs:
        return run_all(self._chooser, feeds)

    @functools.cached_property
    def _session(self) -> Any:
        return cpu_session(self._graph)

    @functools.cached_property
    def _chooser(self) -> Any:
        assert self._selection is not None
        return cpu_session(self._selection)


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What is known of a sample before the decoder runs."""

    prompt: Encoded
    positions: Array
    features: Array
    answer: Sequence[int]
    room: int
