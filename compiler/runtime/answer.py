"""What comes out of the run-time: an answer as it grows, and its statistics."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.bundle.tile_grids import named
from lmmprune.compiler.runtime.encoded import Encoded
from lmmprune.compiler.runtime.image_features import ImageFeatures
from lmmprune.compiler.runtime.text_stream import TextStream
from lmmprune.errors import InputError

FinishReason = Literal["stop", "stop_string", "length", "positions", "closed"]
"""Why an answer ended: with the model's end token, before a stop string, after ``max_new_tokens``, because the model's
positions (or those of a fixed cache) are used up, or because its reader left the loop."""


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Times in milliseconds and counts of one answer, all its pictures together; one of no tokens has no prefill.

    ``dynamic_count`` is what the method itself would have kept of the picture, where the bundle has several counts to
    choose from (None elsewhere). ``new_tokens`` counts the end token and those of a stop string too. ``tiles`` is the
    grid of each picture, rows x columns, where a bundle cuts them into tiles; ``own_tiles`` the one that the
    checkpoint's own processor cuts it into.
    """

    preprocess_ms: float
    vision_ms: float
    prefill_ms: float
    decode_ms: float
    tokens_before: int
    image_tokens: int
    prompt_tokens: int
    new_tokens: int
    finish_reason: FinishReason
    dynamic_count: int | None = None
    images: int = 1
    tiles: tuple[str, ...] = ()
    own_tiles: tuple[str, ...] = ()

    @property
    def ttft_ms(self) -> float:
        """Time to the first token in ms, from the pixel values on: vision and prefill."""
        return self.vision_ms + self.prefill_ms

    @property
    def ms_per_token(self) -> float | None:
        """Mean time of the tokens after the first one; None if there was only one."""
        return self.decode_ms / (self.new_tokens - 1) if self.new_tokens > 1 else None

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, the derived times included, for JSON."""
        return {**dataclasses.asdict(self), "ttft_ms": self.ttft_ms, "ms_per_token": self.ms_per_token}


class Answer:
    """An answer in the making: iterate over it for the text as it comes, or ask for its ``text``.

    It is generated once, while it is read. Iterating again gives the same pieces. Leaving the loop early (or closing
    its iterator) ends the answer there, with the reason ``closed``, and what it held is free again. One reader at a
    time: a second loop inside the first one, or in another thread, is an ``InputError``.

    Attributes:
        tokens: Ids of what was generated so far, the end token included.
        kept: Indices of the kept patches, int64 ``[K]``, with several pictures those of picture i from i * N on, with
            tiles those of the prompt's tile i; None when the graph doesn't prune.
    """

    def __init__(
        self,
        generated: Generator[tuple[int, float], None, None],
        stream: TextStream,
        *,
        ends: Sequence[int],
        full: FinishReason,
        pictures: Sequence[ImageFeatures],
        kept: NDArray[np.int64] | None,
        prompt: Encoded,
        tokens_before: int,
    ) -> None:
        """Use ``Model.answer`` or ``Runtime.answer`` instead.

        Args:
            generated: Token ids, each with its milliseconds; closed when the answer ends.
            stream: What makes text of them.
            ends: Ids that end an answer.
            full: Why it ends where ``generated`` does.
            pictures: The pictures.
            kept: Which patches of theirs left the vision graph.
            prompt: The question.
            tokens_before: Visual tokens of the unpruned model, of all pictures.
        """
        self.tokens: list[int] = []
        self.kept = kept
        self._milliseconds: list[float] = []
        self._pieces: list[str] = []
        self._reader = threading.Lock()
        self._reason: FinishReason | None = None
        self._failure: Exception | None = None
        self._generated, self._stream, self._ends, self._full = generated, stream, ends, full
        counts = [picture.dynamic_count for picture in pictures if picture.dynamic_count is not None]
        cut = [picture.picked for picture in pictures if picture.picked is not None]
        self._about: dict[str, Any] = {
            "preprocess_ms": sum(picture.preprocess_ms for picture in pictures),
            "vision_ms": sum(picture.vision_ms for picture in pictures),
            "images": sum(picture.pictures for picture in pictures),
            "tiles": tuple(named(picked.grid) for picked in cut),
            "own_tiles": tuple(named(picked.own) for picked in cut),
            "tokens_before": tokens_before,
            "image_tokens": prompt.image_tokens,
            "prompt_tokens": prompt.length,
            "dynamic_count": sum(counts) if counts else None,
        }

    @property
    def text(self) -> str:
        """The whole text; what isn't there yet is generated first."""
        return "".join(self)

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended; an answer that isn't finished is generated first."""
        if self._reason is None:
            for _ in self:
                pass
        assert self._reason is not None
        return self._reason

    @property
    def stats(self) -> Stats:
        """Times and counts; an answer that isn't finished is generated first."""
        reason = self.finish_reason
        return Stats(
            prefill_ms=sum(self._milliseconds[:1]),
            decode_ms=sum(self._milliseconds[1:]),
            new_tokens=len(self.tokens),
            finish_reason=reason,
            **self._about,
        )

    def __iter__(self) -> Generator[str, None, None]:
        if self._reason is None and self._failure is None:
            yield from self._read()
            return
        if self._failure is not None:
            raise self._failure
        yield from self._pieces

    def _read(self) -> Generator[str, None, None]:
        """Generate to the end, or until the reader leaves."""
        if not self._reader.acquire(blocking=False):
            raise InputError("this answer is being read already: let that loop end first, or ask again")
        reason: FinishReason = "closed"
        try:
            for token, spent in self._generated:
                self.tokens.append(token)
                self._milliseconds.append(spent)
                if token in self._ends:
                    reason = "stop"
                    break
                piece = self._stream.push(token)
                if self._stream.stopped:
                    reason = "stop_string"
                if piece:
                    self._pieces.append(piece)
                    yield piece
                if self._stream.stopped:
                    break
            else:
                reason = self._full
            rest = self._stream.finish()
            if self._stream.stopped:
                reason = "stop_string"
            if rest:
                self._pieces.append(rest)
                yield rest
        except Exception as error:
            self._failure = error
            raise
        finally:
            self._generated.close()
            self._reason = reason
            self._reader.release()
