"""Decode several questions together: one run of the decoder gives each of them a token."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.backends.one_row import stack
from lmmprune.compiler.backends.session import Session, Value
from lmmprune.compiler.bundle.interface import Batch
from lmmprune.compiler.runtime.encoded import Encoded
from lmmprune.compiler.runtime.kv_cache import KvCache
from lmmprune.errors import BundleError
from lmmprune.names import IMAGE_FEATURES, INPUT_IDS, LOGITS, PADDING, POSITION_IDS

Token = tuple[int, float]
"""An id, and the milliseconds of the run that made it; the first one's are those of the prefill."""
Cache = KvCache[Value]


@dataclass(frozen=True, kw_only=True)
class Question:
    """One row of a batch.

    Attributes:
        prompt: With a placeholder per feature.
        features: ``[1,K,C]``.
        positions: int64 ``[1,n]``, with M-RoPE ``[3,1,n]``.
        choose: Gives the next token from logits ``[V]``.
        limit: How many tokens at most.
        ends: Tokens that end the answer.
    """

    prompt: Encoded
    features: NDArray[Any]
    positions: NDArray[np.int64]
    choose: Callable[[NDArray[Any]], int]
    limit: int
    ends: Sequence[int]


class Lockstep:
    """Rows that are decoded together, and read each on its own: whoever needs a token runs the decoder for all.

    Threads may read rows side by side. A row that has ended, or that nobody reads any more, is computed on with the
    others, and dropped; when none is left, nothing runs.
    """

    def __init__(self, steps: Callable[[Lockstep], Generator[list[Token | None], None, None]], count: int) -> None:
        """Begin; nothing runs yet.

        Args:
            steps: Given this object, yields a token per row for each run, None for a row that has ended.
            count: Rows.
        """
        self.open = [True] * count
        self._lock = threading.RLock()  # a reader may be collected in the middle of another's turn
        self._waiting: list[deque[Token]] = [deque() for _ in range(count)]
        self._steps = steps(self)
        self._ended = False
        self._failure: Exception | None = None

    def row(self, index: int) -> Generator[Token, None, None]:
        """Yield the tokens of a row."""
        try:
            while True:
                with self._lock:
                    if not self._waiting[index]:
                        self._advance(index)
                    if not self._waiting[index]:
                        return
                    token = self._waiting[index].popleft()
                yield token
        finally:
            with self._lock:
                self.open[index] = False
                if not any(self.open):
                    self._steps.close()

    def _advance(self, index: int) -> None:
        if self._failure is not None:
            raise self._failure
        if self._ended or not self.open[index]:
            return
        try:
            found = next(self._steps)
        except StopIteration:
            self._ended = True
            return
        except Exception as error:  # raised again, and to the readers of the other rows
            self._failure = error
            raise
        for waiting, token in zip(self._waiting, found, strict=True):
            if token is not None:
                waiting.append(token)


def decode_rows(
    questions: Sequence[Question],
    batch: Batch,
    session: Callable[[], Session],
    cache: Cache,
    wanted: Sequence[bool],
    *,
    filler: int,
    where: str,
) -> Generator[list[Token | None], None, None]:
    """Yield a token per question for each run of the decoder.

    Args:
        questions: 1 to B of them; rows without one are copies of the last.
        batch: How the bundle takes them.
        session: Gives the decoder, of B rows.
        cache: Empty, of B rows.
        wanted: Which of them somebody still reads.
        filler: A token that is no picture's placeholder.
        where: The bundle, for messages.

    Raises:
        BundleError: The logits aren't numbers.
        InputError: The model was closed.
    """
    open_rows = [question.limit > 0 for question in questions]
    ids, positions, padding = padded(questions, batch, filler)
    features = stack([question.features for question in questions], batch.rows)
    held = session().upload(features), session().upload(padding)
    done = 0
    while any(mine and others for mine, others in zip(open_rows, wanted, strict=True)):
        start, decoder = time.perf_counter(), session()
        outputs = decoder.run(
            {
                INPUT_IDS: decoder.upload(ids),
                IMAGE_FEATURES: held[0],
                POSITION_IDS: decoder.upload(positions),
                PADDING: held[1],
                **cache.feeds(ids.shape[1]),
            }
        )
        logits = decoder.download(outputs[LOGITS])[:, -1]
        tokens: list[int | None] = [None] * len(questions)
        for row, question in enumerate(questions):
            if not (open_rows[row] and wanted[row]):
                continue
            token = question.choose(logits[row])
            if not np.isfinite(logits[row][token]):
                raise BundleError(
                    f"the decoder of '{where}' gives {logits[row][token]} instead of logits: the model overflows in its"
                    " type; export with --dtype float32"
                )
            tokens[row] = token
            open_rows[row] = done + 1 < question.limit and token not in question.ends
        cache.take(outputs, tokens=ids.shape[1])
        spent, done = (time.perf_counter() - start) * 1e3, done + 1
        yield [None if token is None else (token, spent) for token in tokens]
        column = [[filler if token is None else token] for token in tokens]
        ids = np.array(column + column[-1:] * (batch.rows - len(column)), np.int64)
        positions = positions[..., -1:] + 1


def padded(
    questions: Sequence[Question], batch: Batch, filler: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return ids ``[B,n]``, positions ``[B,n]`` (``[3,B,n]``) and how many tokens of each row are padding, ``[B]``.

    Rows end together, at the last token, which speaks. What fills the shorter ones stands at the bundle's place for it,
    and no token sees it: each keeps the number that it has without.
    """
    longest = max(question.prompt.length for question in questions)
    place = batch.padding
    missing = [longest - question.prompt.length for question in questions]
    ids, positions = [], []
    for question, count in zip(questions, missing, strict=True):
        ids.append(np.insert(question.prompt.input_ids, [place] * count, filler, axis=1))
        positions.append(np.insert(question.positions, [place] * count, 0, axis=-1))
    counts = np.array(missing + missing[-1:] * (batch.rows - len(missing)), np.int64)
    return stack(ids, batch.rows), stack(positions, batch.rows, axis=positions[0].ndim - 2), counts
