"""A conversation about pictures: each question goes on from what was said, and from what the decoder has read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from lmmprune.compiler.runtime.answer import Answer
from lmmprune.compiler.runtime.image_features import ImageFeatures
from lmmprune.compiler.runtime.open_picture import Picture, open_picture
from lmmprune.compiler.runtime.prompt import TooLong
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.runtime.sampling import Sampling
from lmmprune.errors import InputError, LmmpruneError

Pictures = Picture | ImageFeatures | Sequence[Picture | ImageFeatures]
"""A picture, what the vision graph made of one, or a list of these."""


@dataclass
class _Turn:
    question: str
    answer: Answer
    pictures: int


class Conversation:
    """Questions about pictures, one after the other; made by ``Model.conversation``.

    A question is put as the model's own chat template puts it behind those before, whose keys and values are still in
    the decoder's cache: only what is new is read. Of pictures that a method prunes by the question (at ``llm_input``
    sites), what stays is what the first question chose, as long as the conversation lasts [ours]; ``reuse=False``
    reads, and chooses, everything anew at each question.

    Example::

        with lmmprune.load("out") as model:
            talk = model.conversation("cat.jpg")
            print(talk.ask("What is this?").text)
            answer = talk.ask("And what colour is it?")
            print(answer.text, answer.stats.reused_tokens, answer.stats.ttft_ms)
    """

    def __init__(self, runtime: Runtime, picture: Pictures = (), *, reuse: bool = True) -> None:
        """Begin; the vision graph runs when the first question is asked.

        Args:
            runtime: A loaded bundle's.
            picture: The pictures of the first question, as ``Model.answer`` takes them.
            reuse: Whether to keep what the decoder has read.

        Raises:
            InputError: A picture can't be used, there are too many, or the bundle's engines can't go on from what they
                have read.
        """
        self._runtime, self._given = runtime, _listed(picture)
        self._held = runtime.hold() if reuse else None
        self._pictures: list[ImageFeatures] = []
        self._turns: list[_Turn] = []

    @property
    def turns(self) -> list[tuple[str, str]]:
        """Questions with their answers; one that isn't finished is generated first."""
        return [(turn.question, turn.answer.text) for turn in self._turns]

    @property
    def pictures(self) -> int:
        """How many pictures it is about."""
        return sum(one.pictures for one in self._pictures) or len(self._given)

    @property
    def cached_tokens(self) -> int:
        """Tokens in the decoder's cache."""
        return 0 if self._held is None else self._held.tokens

    def answer(
        self,
        question: str,
        picture: Pictures = (),
        *,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> Answer:
        """Ask the next question, and get its answer piece by piece; an earlier one is generated to its end first.

        An answer whose reader left is what came until then. Where this raises, nothing was asked: what was said before
        stays, and another question may follow.

        Args:
            question: The question.
            picture: Further pictures, which come with it; as many as the bundle was exported for with all before.
            max_new_tokens: As for ``Model.answer``, like the rest.
            temperature: See there.
            top_p: See there.
            top_k: See there.
            seed: See there.
            stop: See there.

        Raises:
            InputError: As ``Model.answer``; or the conversation has grown too long for the model's positions, has no
                picture, or its prompt takes one question.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        self._drop_failed()
        further = [*(() if self._pictures else self._given), *_listed(picture)]
        pictures = self._encoded(further)
        placed = [turn.pictures for turn in self._turns]
        placed.append(sum(one.pictures for one in pictures) - sum(placed))
        try:
            answer = self._runtime.answer(
                pictures,
                [*(word for turn in self.turns for word in turn), question],
                max_new_tokens,
                sampling=sampling,
                stop=stop,
                held=self._held,
                placed=placed,
            )
        except TooLong as error:
            if not self._turns:
                raise
            asked = len(self._turns)
            raise InputError(
                f"no room for another question behind {asked} before it ({error}): begin anew, which keeps the picture"
            ) from error
        # The time that the vision graph took is the first question's.
        self._pictures = [dataclasses.replace(one, preprocess_ms=0.0, vision_ms=0.0) for one in pictures]
        self._turns.append(_Turn(question, answer, placed[-1]))
        return answer

    def ask(
        self,
        question: str,
        picture: Pictures = (),
        *,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> Answer:
        """Ask the next question and get the whole answer; arguments and errors are those of ``answer``."""
        answer = self.answer(
            question,
            picture,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=stop,
        )
        _ = answer.text
        return answer

    def reset(self) -> None:
        """Forget what was said. The pictures stay, and what the decoder has read of them."""
        self._turns = []

    def _encoded(self, further: Sequence[Picture | ImageFeatures]) -> list[ImageFeatures]:
        """Return all pictures, with the further ones encoded."""
        if not self._pictures and not further:
            raise InputError("no picture: a conversation is about one, given at its beginning or with a question")
        opened = [one if isinstance(one, ImageFeatures) else open_picture(one) for one in further]
        return self._runtime.encode_missing([*self._pictures, *opened])

    def _drop_failed(self) -> None:
        """Let the last answer come to its end; one that can't was never given."""
        try:
            _ = [turn.answer.text for turn in self._turns[-1:]]
        except LmmpruneError:
            if not self._turns[-1].answer.failed:
                raise
            self._turns.pop()


def _listed(picture: Pictures) -> list[Picture | ImageFeatures]:
    return list(picture) if isinstance(picture, (list, tuple)) else [picture]  # type: ignore[list-item]
