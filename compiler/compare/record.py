"""Record what a bundle says of each token of an answer: of its own, or of one that is given to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.runtime.encoded import Encoded
from lmmprune.compiler.runtime.image_features import ImageFeatures, as_pictures
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.runtime.sampling import Pick
from lmmprune.compiler.runtime.tiled_picture import grids_of
from lmmprune.errors import InputError

LIKELIEST = 1000
"""Tokens whose probability is kept for every step of a recorded answer; a smaller vocabulary is kept whole."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A greedy answer of n tokens, with the k likeliest tokens of every step.

    Attributes:
        tokens: int64 ``[n]``, the end token included.
        ids: int32 ``[n,k]``, the likeliest first.
        log_probabilities: float32 ``[n,k]``, nats, of these tokens.
    """

    tokens: NDArray[np.int64]
    ids: NDArray[np.int32]
    log_probabilities: NDArray[np.float32]

    @property
    def log_likelihoods(self) -> NDArray[np.float64]:
        """Log probability of each token of the answer, nats ``[n]``."""
        chosen = self.ids == self.tokens[:, None]
        likelihoods: NDArray[np.float64] = np.where(chosen, self.log_probabilities, 0).sum(axis=1, dtype=np.float64)
        return likelihoods


Pictures = ImageFeatures | Sequence[ImageFeatures]
"""The encoded picture of a prompt, or several."""


class _Recorder:
    """Chooses tokens, and keeps the scores that it chose from."""

    def __init__(self, given: Sequence[int] | None = None) -> None:
        self.scores: list[NDArray[np.float32]] = []
        self._given = given

    def start(self) -> Pick:
        """Return what takes the likeliest token, or the one that is given."""

        def pick(scores: NDArray[Any]) -> int:
            token = int(scores.argmax()) if self._given is None else self._given[len(self.scores)]
            self.scores.append(scores.astype(np.float32))
            return token

        return pick


def log_softmax(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Return log probabilities ``[n,V]`` of scores ``[n,V]``, computed in float64."""
    raised = scores.astype(np.float64)
    raised = raised - raised.max(axis=1, keepdims=True)
    total: NDArray[np.float64] = raised - np.log(np.exp(raised).sum(axis=1, keepdims=True))
    return total


def record_answer(runtime: Runtime, picture: Pictures, prompt: str, limit: int) -> Recorded:
    """Answer greedily, as ``Runtime.answer`` does, and keep what every token was chosen from.

    Args:
        runtime: A loaded bundle.
        picture: The encoded picture, or several.
        prompt: The bare question.
        limit: Tokens at most.

    Raises:
        InputError: The prompt is too long.
    """
    recorder = _Recorder()
    tokens: list[int] = []
    ends = runtime.bundle.manifest.prompt.eos_token_ids
    encoded = _encode(runtime, picture, prompt)
    for token, _ in runtime.generate(picture, encoded, limit, recorder):
        tokens.append(token)
        if token in ends:
            break
    return keep_likeliest(tokens, log_softmax(np.stack(recorder.scores[: len(tokens)])))


def _encode(runtime: Runtime, picture: Pictures, prompt: str) -> Encoded:
    pictures = as_pictures(picture)
    counts = [count for one in pictures for count in one.each]
    return runtime.prompter.encode(prompt, image_tokens=counts, grids=grids_of(pictures))


def keep_likeliest(tokens: Sequence[int], logs: NDArray[np.float64]) -> Recorded:
    """Keep of each step what a comparison needs.

    Args:
        tokens: The answer ``[n]``.
        logs: Log probabilities ``[n,V]`` that it was chosen from, nats.
    """
    ids = np.argsort(-logs, axis=1, kind="stable")[:, :LIKELIEST]
    return Recorded(
        tokens=np.array(tokens, np.int64),
        ids=ids.astype(np.int32),
        log_probabilities=np.take_along_axis(logs, ids, axis=1).astype(np.float32),
    )


def score_answer(runtime: Runtime, picture: Pictures, prompt: str, answer: Sequence[int]) -> NDArray[np.float64]:
    """Return what a bundle thinks of each next token while it is led through an answer: log probabilities ``[n,V]``.

    Args:
        runtime: A loaded bundle.
        picture: The picture, encoded by it, or several.
        prompt: The bare question.
        answer: Tokens ``[n]`` that it is given, whatever it would have said.

    Raises:
        InputError: The prompt leaves it no room for the whole answer.
    """
    recorder = _Recorder(answer)
    encoded = _encode(runtime, picture, prompt)
    for _ in runtime.generate(picture, encoded, len(answer), recorder):
        pass
    if len(recorder.scores) < len(answer):
        raise InputError(
            f"'{runtime.bundle.path}' has room for {len(recorder.scores)} tokens behind the prompt {prompt!r}, the"
            f" answer has {len(answer)}: give fewer --max-new-tokens, or export with a larger --static-cache"
        )
    return log_softmax(np.stack(recorder.scores))
