"""The work behind a request, in the thread of its bundle: decode the picture, encode it, answer token by token."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from lmmprune.compiler.runtime.answer import Stats
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.runtime.sampling import Pick, Sampling
from lmmprune.compiler.runtime.show_kept import show_kept
from lmmprune.compiler.serve.desk import Job
from lmmprune.compiler.serve.pictures import decode_picture
from lmmprune.compiler.serve.prefixes import Prefixes
from lmmprune.compiler.serve.question import Question


@dataclass(frozen=True)
class Piece:
    """New text of an answer."""

    text: str


@dataclass(frozen=True)
class Done:
    """The end of an answer."""

    stats: Stats

    def notes(self) -> dict[str, Any]:
        """Return what the access log says of it: counts and times, no contents."""
        stats = self.stats
        return {
            "image_tokens": stats.image_tokens,
            "prompt_tokens": stats.prompt_tokens,
            "new_tokens": stats.new_tokens,
            "finish_reason": stats.finish_reason,
            "ttft_ms": round(stats.ttft_ms, 1),
        }


@dataclass(frozen=True)
class Drawn:
    """A drawing, as a PNG file."""

    png: bytes


class _Watched:
    """Chooses tokens as somebody else does, for as long as the job is wanted: also where tokens give no text yet."""

    def __init__(self, inner: Sampling, job: Job) -> None:
        self._inner, self._job = inner, job

    def start(self) -> Pick:
        pick = self._inner.start()

        def watched(scores: NDArray[Any]) -> int:
            self._job.check()
            return pick(scores)

        return watched


def answering(
    runtime: Runtime,
    question: Question,
    pictures: Sequence[Callable[[], bytes]],
    max_pixels: int,
    prefixes: Prefixes,
) -> Callable[[Job], None]:
    """Return the work that answers a question, posting each ``Piece`` and, at the end, ``Done``.

    Args:
        runtime: The bundle.
        question: The question.
        pictures: Give the bytes of the pictures' files.
        max_pixels: Pixels of one at most.
        prefixes: What the bundle's decoder has read for earlier requests.
    """

    def work(job: Job) -> None:
        images = [decode_picture(picture(), max_pixels) for picture in pictures]
        job.check()
        visual = runtime.encode_images(images)
        job.check()
        with prefixes.lend(visual, question.words) as held:
            answer = runtime.answer(
                visual,
                question.words,
                question.max_new_tokens,
                sampling=_Watched(question.sampling, job),
                stop=question.stop,
                held=held,
            )
            for piece in answer:
                job.post(Piece(piece))
        job.post(Done(answer.stats))

    return work


def drawing(
    runtime: Runtime, question: Question, picture: Callable[[], bytes], max_pixels: int
) -> Callable[[Job], None]:
    """Return the work that draws which patches a bundle keeps of a picture, and posts one ``Drawn``."""

    def work(job: Job) -> None:
        drawn = show_kept(runtime, decode_picture(picture(), max_pixels), prompt=question.words[-1])
        held = io.BytesIO()
        drawn.image.save(held, "PNG")
        job.post(Drawn(held.getvalue()))

    return work
