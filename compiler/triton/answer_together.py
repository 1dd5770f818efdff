"""Answer the requests that Triton's dynamic batcher hands over together: each is a row of the bundle's graphs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as triton
from numpy.typing import NDArray

from lmmprune.compiler.runtime.answer import Answer
from lmmprune.compiler.runtime.asked import Asked
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.triton.errors import refusal
from lmmprune.errors import LmmpruneError

_FAILED = "lmmprune failed; the server's log says more"


@dataclass(frozen=True)
class Wanted:
    """What a request asks: ``pixel_values`` ``[1,3,H,W]`` of its picture, the question, and how many tokens."""

    pixels: NDArray[Any]
    question: str
    max_new_tokens: int


class _Reply:
    """The stream to one client, which ends once, with an error or without."""

    def __init__(self, request: Any) -> None:
        self._sender, self._open = request.get_response_sender(), True

    def piece(self, text: str, finished: str) -> bool:
        """Send a piece, with the axis of the batch; return whether somebody still reads."""
        if self._sender.is_cancelled():
            return False
        outputs = [
            triton.Tensor(name, np.array([[value.encode()]], np.object_))
            for name, value in (("text", text), ("finish_reason", finished))
        ]
        self._sender.send(triton.InferenceResponse(outputs))
        return True

    def end(self, error: Any = None) -> None:
        """End the stream."""
        if not self._open:
            return
        self._open = False
        if error is not None:
            self._sender.send(triton.InferenceResponse(error=error))
        self._sender.send(flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def answer_together(runtime: Runtime, requests: Sequence[Any], read: Callable[[Any], Wanted]) -> None:
    """Stream the answer to each request; what is wrong with one is told to its client alone.

    Args:
        runtime: The bundle.
        requests: As many as it takes at once, or fewer.
        read: Reads one.
    """
    replies = [_Reply(request) for request in requests]
    try:
        _answer(runtime, [*zip(replies, requests, strict=True)], read)
    finally:
        # What isn't ours goes on to Triton's log; no client must take the text so far for a whole answer.
        for reply in replies:
            reply.end(triton.TritonError(_FAILED, triton.TritonError.INTERNAL))


def _answer(runtime: Runtime, given: Sequence[tuple[_Reply, Any]], read: Callable[[Any], Wanted]) -> None:
    rows: list[tuple[_Reply, Wanted]] = []
    for reply, request in given:
        try:
            rows.append((reply, read(request)))
        except LmmpruneError as error:
            reply.end(refusal(error))
    if not rows:
        return
    features = runtime.encode_pixel_rows([wanted.pixels for _, wanted in rows])
    asked = [
        Asked(image=image, prompt=wanted.question, max_new_tokens=wanted.max_new_tokens)
        for image, (_, wanted) in zip(features, rows, strict=True)
    ]
    try:
        answers = [(reply, answer) for (reply, _), answer in zip(rows, runtime.answer_batch(asked), strict=True)]
    except LmmpruneError:
        # One question can't be asked: that one is told so, and the others are answered.
        answers = []
        for (reply, _), one in zip(rows, asked, strict=True):
            try:
                answers += [(reply, answer) for answer in runtime.answer_batch([one])]
            except LmmpruneError as error:
                reply.end(refusal(error))
    readers = [(reply, answer, iter(answer)) for reply, answer in answers]
    while readers:
        readers = [reader for reader in readers if _step(*reader)]


def _step(reply: _Reply, answer: Answer, reader: Generator[str, None, None]) -> bool:
    """Send the next piece of an answer; return whether there may be more."""
    try:
        piece = next(reader, None)
    except LmmpruneError as error:
        reply.end(refusal(error))
        return False
    if piece is None:
        reply.piece("", answer.finish_reason)
        reply.end()
        return False
    if not reply.piece(piece, ""):
        reader.close()
        reply.end()
        return False
    return True
