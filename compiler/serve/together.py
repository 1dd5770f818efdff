"""Answer requests that wait for the same bundle together, each a row of its graphs, and stream each its own answer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from lmmprune.compiler.runtime.answer import Answer
from lmmprune.compiler.runtime.asked import Asked
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.runtime.sampling import Pick, Sampling
from lmmprune.compiler.serve.desk import Job
from lmmprune.compiler.serve.pictures import decode_picture
from lmmprune.compiler.serve.question import Question
from lmmprune.compiler.serve.work import Done, Piece
from lmmprune.errors import LmmpruneError


@dataclass(frozen=True)
class Row:
    """What a request wants answered.

    Attributes:
        question: The question.
        pictures: Give the bytes of the pictures' files.
        max_pixels: Pixels of one at most.
    """

    question: Question
    pictures: Sequence[Callable[[], bytes]]
    max_pixels: int

    def image(self) -> Image.Image:
        """Return its one picture."""
        [picture] = self.pictures
        return decode_picture(picture(), self.max_pixels)


class _WhileWanted:
    """Chooses tokens as somebody else does; a row whose client has left ends, and the others go on."""

    def __init__(self, inner: Sampling, job: Job, end: int) -> None:
        self._inner, self._job, self._end = inner, job, end

    def start(self) -> Pick:
        pick = self._inner.start()

        def chosen(scores: NDArray[Any]) -> int:
            return self._end if self._job.cancelled else pick(scores)

        return chosen


def answer_together(runtime: Runtime, jobs: Sequence[Job]) -> None:
    """Do jobs of one bundle in one batch, posting what ``answering`` posts; with one that is refused, one by one.

    Args:
        runtime: The bundle, which takes so many questions at once.
        jobs: Each with a ``Row``.
    """
    jobs = [job for job in jobs if not job.cancelled]
    try:
        answers = runtime.answer_batch([_asked(runtime, job) for job in jobs]) if len(jobs) > 1 else []
    except LmmpruneError:
        answers = []  # whose mistake it is, each finds out for itself
    if not answers:
        for job in jobs:
            job.run()
        return
    for job in jobs:
        job.begin()
    readers = [(job, answer, iter(answer)) for job, answer in zip(jobs, answers, strict=True)]
    while readers:
        readers = [reader for reader in readers if _step(*reader)]


def _asked(runtime: Runtime, job: Job) -> Asked:
    row: Row = job.row
    end = (*runtime.bundle.manifest.prompt.eos_token_ids, 0)[0]
    return Asked(
        image=row.image(),
        prompt=row.question.words,
        max_new_tokens=row.question.max_new_tokens,
        sampling=_WhileWanted(row.question.sampling, job, end),
        stop=row.question.stop,
    )


def _step(job: Job, answer: Answer, reader: Generator[str, None, None]) -> bool:
    """Post the next piece of an answer; return whether there may be more."""
    if job.cancelled:
        reader.close()
        return False
    try:
        piece = next(reader, None)
    except Exception as error:  # noqa: BLE001 - as in ``Job.run``
        job.fail(error)
        return False
    if piece is None:
        job.post(Done(answer.stats))
        return False
    job.post(Piece(piece))
    return True
