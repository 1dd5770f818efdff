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
            known |= {key: see(one) if see else runtime.encode_images(one.pictures()) for key, one in new.items()}
            [only] = some
            answers = [runtime.answer(known[only.picture], only.prompt, max_new_tokens, **settings)]
        else:
            encoded = runtime.encode_batch([image for one in new.values() for image in _only(runtime, one)])
            known |= {key: [features] for key, features in zip(new, encoded, strict=True)}
            answers = runtime.answer_batch(
                [
                    Asked(image=known[one.picture][0], prompt=one.prompt, max_new_tokens=max_new_tokens, **settings)
                    for one in some
                ]
            )
        for question, answer in zip(some, answers, strict=True):
            _ = answer.text
            yield question, answer


def _only(runtime: Runtime, question: Asks) -> list[Image.Image]:
    """Return the pictures of a question, which must be as many as the bundle takes."""
    pictures = question.pictures()
    check_pictures(runtime.bundle.manifest, len(pictures))
    return pictures
