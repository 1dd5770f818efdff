"""Ask a bundle question after question, keep all logits, and have PyTorch run the whole of it anew, without a cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hub_layouts import oracle
from hub_layouts.layout import Layout
from numpy.typing import NDArray
from PIL import Image

from lmmprune.compiler.assets.text_layout import text_layout
from lmmprune.compiler.bundle.bundle import TOKENIZER, Bundle
from lmmprune.compiler.runtime.held import Held
from lmmprune.compiler.runtime.image_features import ImageFeatures
from lmmprune.compiler.runtime.logits import LogitsRules
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.runtime.sampling import Pick
from lmmprune.compiler.runtime.tiled_picture import grids_of
from lmmprune.compiler.verify.find_source import find_source
from lmmprune.compiler.verify.reference import Cut, load_model, rule_options, say

Array = NDArray[Any]


class Recorder:
    """Chooses the likeliest tokens, and keeps what it chose from."""

    def __init__(self) -> None:
        self.rows: list[Array] = []

    def start(self) -> Pick:
        def pick(scores: Array) -> int:
            self.rows.append(scores.astype(np.float32))
            return int(scores.argmax())

        return pick


@dataclass
class Talk:
    """A conversation with a run-time, and what was said in it.

    Attributes:
        ids: Of each question the whole prompt, as it was tokenized.
        tokens: Of each answer.
        logits: Of each answer ``[n,V]``.
        reused: Of each question the tokens that weren't read again.
    """

    runtime: Runtime
    pictures: Sequence[ImageFeatures]
    held: Held | None
    words: list[str] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    logits: list[Array] = field(default_factory=list)
    reused: list[int] = field(default_factory=list)

    def ask(self, question: str, new_tokens: int, placed: Sequence[int] | None = None) -> None:
        """Ask one question more."""
        recorder = Recorder()
        self.words.append(question)
        counts = [count for one in self.pictures for count in one.each]
        encoded = self.runtime.prompter.encode(
            self.words, image_tokens=counts, grids=grids_of(self.pictures), placed=placed
        )
        answer = self.runtime.answer(
            self.pictures,
            self.words,
            new_tokens,
            sampling=recorder,
            stop_at_eos=False,
            held=self.held,
            placed=placed,
        )
        self.words.append(answer.text)
        self.ids.append(encoded.input_ids[0].tolist())
        self.tokens.append(answer.tokens)
        self.logits.append(np.stack(recorder.rows))
        self.reused.append(answer.stats.reused_tokens)


def reference(path: Path, talk: Talk) -> list[Array]:
    """Return the logits of all answers but the first, of whole runs in PyTorch that keep what the first question kept.

    No token of the first prompt sees those behind it, and these alone decide what stays: all that comes later is given
    as if it had been said.
    """
    bundle = Bundle.open(path)
    manifest, source = bundle.manifest, find_source(bundle.manifest, None, None)
    (picture,) = talk.pictures
    image, first = manifest.prompt.image_token_id, talk.ids[0]
    start = first.index(image)
    tail = first[start + picture.tokens :]
    inside = bool(manifest.decoder_sites or manifest.selection)
    features = np.asarray(talk.runtime._session("vision").download(picture.features)[0], np.float32)
    found = []
    for ids, tokens in zip(talk.ids[1:], talk.tokens[1:], strict=True):
        given = [*ids[len(first) :], *tokens]
        assert ids[: len(first)] == first
        said = say(
            load_model(source),
            manifest.method or "uniform",
            rule_options(manifest.method or "", manifest.parameters, source.vision.layers),
            [Cut(stage.site, stage.tokens_out) for stage in manifest.schedule if stage.in_decoder],
            torch.from_numpy(features),
            picture.kept,
            first[:start],
            tail,
            positions={"vision": manifest.positions, "llm": manifest.llm_positions},
            patches=manifest.picture_tokens,
            grid=manifest.grid if manifest.position_rows > 1 else None,
            steps=len(given) - 1,
            special_ids=text_layout(manifest.prompt, bundle.file(TOKENIZER), in_decoder=inside).special_ids,
            forced=given,
        )
        found.append(said.logits[-len(tokens) :])
    return found


def assert_conversation(
    folder: Path, layout: Layout, runtime: Runtime, pictures: Sequence[ImageFeatures], placed: tuple[int, int]
) -> None:
    """Bring pictures (of the seeds 3, 4, ...) with both questions: only what is new is read, and nothing else is said.

    Held against transformers' ids of the conversation, and its model's logits in one run over all of it.
    """
    # Some checkpoints change logits by what was said before, which transformers' model itself doesn't.
    runtime._rules = LogitsRules(dataclasses.replace(runtime.bundle.manifest, generation={}))
    talk = Talk(runtime, pictures[: placed[0]], runtime.hold())
    talk.ask("What is this?", 4)
    talk.pictures = pictures
    talk.ask("And what is that?", 4, placed=placed)
    # The prompt's last token may be another one where the answer's letters follow.
    assert talk.reused[1] >= len(talk.ids[0]) - 1
    words, seeds = talk.words[:3], range(3, 3 + len(pictures))
    assert talk.ids[1] == oracle.conversation(str(folder), layout, words, seeds, placed)
    wanted = oracle.conversed_logits(str(folder), layout, words, seeds, placed)
    assert np.abs(talk.logits[1][0] - wanted).max() <= 1e-4 * np.abs(wanted).max()


def picture(path: Path) -> Image.Image:
    """Return a picture as the run-time takes it."""
    with Image.open(path) as opened:
        return opened.convert("RGB")
