"""What comes out of the run-time: an encoded picture, an answer as it grows, and its statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.backends.session import Value
from lmmprune.compiler.runtime.prompt import Encoded, TextStream

if TYPE_CHECKING:
    from lmmprune.compiler.runtime.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class SiteTokens:
    """The visual tokens that leave one site.

    Attributes:
        tokens_in: Tokens that arrived there.
        kept: int64 ``[K]``, the patch in whose place each token is; -1: none.
        received: bool ``[K]``, whether other tokens went into it at this site.
    """

    tokens_in: int
    kept: NDArray[np.int64]
    received: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """What the vision graph made of a picture; several questions may share it.

    Attributes:
        features: ``[1, K, C]``, a value of the back end.
        tokens: K.
        kept: int64 ``[K]``, indices into the N patches; None when the graph doesn't prune.
        sites: What leaves each site of the vision graph that removes tokens, by its name, in the data's order.
        preprocess_ms: milliseconds from the picture to its pixel values.
        vision_ms: milliseconds of the vision graph.
        dynamic_count: How many patches the method itself would keep of this picture; None where it doesn't say.
    """

    features: Value
    tokens: int
    kept: NDArray[np.int64] | None
    sites: Mapping[str, SiteTokens]
    preprocess_ms: float
    vision_ms: float
    dynamic_count: int | None = None


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Times in milliseconds and counts of one answer.

    ``stopped`` is "eos", "length" or "positions" (the model's, or a fixed cache's, are used up). ``dynamic_count`` is
    what the method itself would have kept of the picture, where the bundle has several counts to choose from (None
    elsewhere).
    """

    preprocess_ms: float
    vision_ms: float
    prefill_ms: float
    decode_ms: float
    tokens_before: int
    image_tokens: int
    prompt_tokens: int
    new_tokens: int
    stopped: str
    dynamic_count: int | None = None

    @property
    def ttft_ms(self) -> float:
        """Time to the first token in ms, from the pixel values on: vision and prefill."""
        return self.vision_ms + self.prefill_ms

    @property
    def ms_per_token(self) -> float | None:
        """Mean time of the tokens after the first one; None if there was only one."""
        return self.decode_ms / (self.new_tokens - 1) if self.new_tokens > 1 else None

    def as_dict(self) -> dict[str, float | int | str | None]:
        """Return all of it, the derived times included, for JSON."""
        return {**dataclasses.asdict(self), "ttft_ms": self.ttft_ms, "ms_per_token": self.ms_per_token}


class Answer:
    """An answer in the making: iterate over it once for the text as it comes; then it has ``tokens`` and ``stats``."""

    def __init__(self, runtime: Runtime, visual: ImageFeatures, prompt: Encoded, limit: int, stop_at_eos: bool) -> None:
        """Use ``Runtime.answer`` instead."""
        self._runtime, self._visual, self._prompt = runtime, visual, prompt
        self._limit, self._stop_at_eos = limit, stop_at_eos
        self.tokens: list[int] = []
        self.stats: Stats | None = None

    @property
    def kept(self) -> NDArray[np.int64] | None:
        """Indices of the kept patches, int64 ``[K]``; None when the graph doesn't prune."""
        return self._visual.kept

    def __iter__(self) -> Iterator[str]:
        stream = TextStream(self._runtime.prompter)
        milliseconds: list[float] = []
        eos = self._runtime.bundle.manifest.prompt.eos_token_ids if self._stop_at_eos else ()
        stopped = "length" if self._limit <= self._runtime.room(self._visual, self._prompt) else "positions"
        for token, spent in self._runtime.generate(self._visual, self._prompt, self._limit):
            self.tokens.append(token)
            milliseconds.append(spent)
            if token in eos:
                stopped = "eos"
                break
            if piece := stream.push(token):
                yield piece
        if rest := stream.finish():
            yield rest
        self.stats = Stats(
            preprocess_ms=self._visual.preprocess_ms,
            vision_ms=self._visual.vision_ms,
            prefill_ms=milliseconds[0],
            decode_ms=sum(milliseconds[1:]),
            tokens_before=self._runtime.bundle.manifest.tokens_before,
            image_tokens=self._prompt.image_tokens,
            prompt_tokens=self._prompt.length,
            new_tokens=len(self.tokens),
            stopped=stopped,
            dynamic_count=self._visual.dynamic_count,
        )

    def text(self) -> str:
        """Generate to the end and return the whole text."""
        return "".join(self)
