"""Ask a bundle many questions, as many at once as it takes; a picture that is asked about again is encoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from PIL import Image

from lmmprune.compiler.runtime.answer import Answer
from lmmprune.compiler.runtime.asked import Asked
from lmmprune.compiler.runtime.image_features import ImageFeatures
from lmmprune.compiler.runtime.prompt import check_pictures
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.errors import InputError, naming


class Asks(Protocol):
    """A question about a picture, or about several."""

    @property
    def picture(self) -> str:
        """What tells its picture from others."""
        ...

    @property
    def prompt(self) -> str:
        """The bare question."""
        ...

    @property
    def where(self) -> str:
        """The line that it stands in, for messages; empty: in no file."""
        ...

    def pictures(self) -> list[Image.Image]:
        """Read its pictures."""
        ...


Q = TypeVar("Q", bound=Asks)


def ask_all(
    runtime: Runtime,
    questions: Sequence[Q],
    max_new_tokens: int,
    see: Callable[[Q], list[ImageFeatures]] | None = None,
    **settings: Any,
) -> Iterator[tuple[Q, Answer]]:
    """Yield each question with its finished answer; those about one picture should stand together.

    One that can't be asked ends it; those before it are answered by then, those of its own batch, too.

    Args:
        runtime: The bundle.
        questions: Any number of them.
        max_new_tokens: Of each, at most.
        see: Encodes what a question is about, where that isn't pictures alone; not for a batch.
        settings: ``sampling`` and ``stop``, as ``Runtime.answer`` takes them.

    Raises:
        InputError: As ``Runtime.answer``.
    """
    known: dict[str, list[ImageFeatures]] = {}
    for begin in range(0, len(questions), runtime.bundle.manifest.rows):
        some = questions[begin : begin + runtime.bundle.manifest.rows]
        known = {key: found for key, found in known.items() if any(one.picture == key for one in some)}
        new = {one.picture: one for one in some if one.picture not in known}
        if runtime.bundle.manifest.batch is None:
            [only] = some
            with naming(only.where):
                known |= {key: see(one) if see else runtime.encode_images(one.pictures()) for key, one in new.items()}
                answers = [runtime.answer(known[only.picture], only.prompt, max_new_tokens, **settings)]
        else:
            images = [_only(runtime, one) for one in new.values()]
            encoded = runtime.encode_batch(images)
            known |= {key: [features] for key, features in zip(new, encoded, strict=True)}
            asked = [
                Asked(image=known[one.picture][0], prompt=one.prompt, max_new_tokens=max_new_tokens, **settings)
                for one in some
            ]
            try:
                answers = runtime.answer_batch(asked)
            except InputError:
                yield from _until_refused(runtime, some, asked)
                raise
        for question, answer in zip(some, answers, strict=True):
            _ = answer.text
            yield question, answer


def _until_refused(runtime: Runtime, some: Sequence[Q], asked: Sequence[Asked]) -> Iterator[tuple[Q, Answer]]:
    """Answer the questions of a batch, one at a time, until the one that can't be asked says so."""
    for question, one in zip(some, asked, strict=True):
        with naming(question.where):
            [answer] = runtime.answer_batch([one])
            _ = answer.text
        yield question, answer


def _only(runtime: Runtime, question: Asks) -> Image.Image:
    """Return the picture of a question, of which there must be one."""
    with naming(question.where):
        pictures = question.pictures()
        check_pictures(runtime.bundle.manifest, len(pictures))
    return pictures[0]
