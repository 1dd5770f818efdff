"""A bundle loaded for answering: the face of the run-time, without torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from lmmprune.api.conversation import Conversation, Pictures
from lmmprune.compiler.bundle import seal
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.manifest import Manifest
from lmmprune.compiler.runtime.answer import Answer
from lmmprune.compiler.runtime.asked import Asked
from lmmprune.compiler.runtime.image_features import ImageFeatures
from lmmprune.compiler.runtime.open_picture import Picture, open_picture
from lmmprune.compiler.runtime.open_video import Clip
from lmmprune.compiler.runtime.prompt import check_pictures
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.runtime.sampling import Sampling

Video = str | Path | Clip
"""The path of a video, or frames that were taken of one."""


class Model:
    """A bundle whose graphs are loaded; made by ``load``.

    Threads may share a model: each answer has a key/value cache of its own, and where a GPU computes, they take turns
    token by token. A ``with`` block closes it at its end.

    Attributes:
        bundle: The bundle, checked against its checksums.
        manifest: What it says of itself: model, method, schedule, precision, target, ...
        load_ms: Milliseconds that loading took.
        runtime: What runs it, for measuring tools.
    """

    @seal.may_be_unsealed
    def __init__(
        self,
        path: str | PathLike[str],
        *,
        threads: int | None = None,
        unsealed: bool = False,
        image_cache: int = 0,
        prefill_chunk: int | None = None,
    ) -> None:
        """Use ``load`` instead."""
        self.bundle: Bundle = Bundle.open(Path(path))
        self.manifest: Manifest = self.bundle.manifest
        start = time.perf_counter()
        self.runtime: Runtime = Runtime(
            self.bundle, threads=threads, image_cache=image_cache, prefill_chunk=prefill_chunk
        )
        self.load_ms: float = (time.perf_counter() - start) * 1e3

    def encode(self, picture: Picture) -> ImageFeatures:
        """Run the vision graph on a picture, for several questions.

        Args:
            picture: Its path, the bytes of its file, an open binary file, or a PIL image. Pictures are turned upright
                as their EXIF orientation says; what is transparent is laid over white.

        Returns:
            The visual tokens that stay, for ``answer`` and ``ask`` of this model; with ``kept``, int64 ``[K]``.

        Raises:
            InputError: It isn't a picture, is damaged or too large, or the model is closed.
        """
        return self.runtime.encode_image(open_picture(picture))

    def encode_video(self, video: Video) -> list[ImageFeatures]:
        """Run the vision graph on the frames of a video, for several questions; of a bundle that was exported for some.

        Args:
            video: Its path, or a ``Clip`` of as many frames as the bundle takes.

        Returns:
            The visual tokens of its views, for ``answer`` and ``ask`` of this model.

        Raises:
            InputError: It isn't a video, is damaged, has fewer frames, or the bundle takes pictures.
            MissingExtraError: PyAV isn't installed.
        """
        return self.runtime.encode_clip(video) if isinstance(video, Clip) else self.runtime.encode_video(video)

    def answer(
        self,
        picture: Pictures | Clip,
        question: str,
        *,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> Answer:
        """Answer a question about a picture, or about several, piece by piece.

        What the checkpoint's generation settings forbid or prefer holds in any case; the options below come after it,
        in this order, and mean what they mean in transformers.

        Args:
            picture: A picture as ``encode`` takes it, or what that returned; or a list of these, as many as the bundle
                was exported for with ``images`` or fewer. Of a bundle for videos one, as ``encode_video`` takes it, or
                what that returned.
            question: The bare question; the bundle's template goes around it. With several pictures ``<image>`` marks
                the place of each; without any, they stand before the question, in their order.
            max_new_tokens: The answer ends after so many tokens; with 0 it has no text and no decoder runs.
            temperature: Tokens are drawn from their scores divided by it; 0, or None, takes the likeliest one.
            top_k: Draw only from so many of the likeliest tokens; 0: from all.
            top_p: Draw only from the likeliest tokens that together have this share of the probability, in 0..1.
            seed: The same seed gives the same answer; None: every answer is another.
            stop: Texts that end the answer, which is cut before the one that is whole first. Nothing of it is yielded.

        Returns:
            The answer; it is generated while it is read.

        Raises:
            InputError: A picture, the question or an option can't be used, there are too many pictures, or not as many
                as the question has places, or the model is closed.

        Example::

            answer = model.answer("cat.jpg", "What is this?", temperature=0.7, seed=1, stop=".")
            for piece in answer:
                print(piece, end="", flush=True)
            print(answer.finish_reason, answer.stats.ttft_ms)
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        if isinstance(picture, Clip) or (self.manifest.video is not None and isinstance(picture, str | Path)):
            picture = self.encode_video(picture)
        given = picture if isinstance(picture, (list, tuple)) else [cast("Picture | ImageFeatures", picture)]
        if self.manifest.video is None:  # else one may be of all views
            check_pictures(self.manifest, len(given))
        known = [one if isinstance(one, ImageFeatures) else open_picture(one) for one in given]
        return self.runtime.answer(known, question, max_new_tokens, sampling=sampling, stop=stop)

    def ask(
        self,
        picture: Pictures | Clip,
        question: str,
        *,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> Answer:
        """Answer a question about pictures as a whole; arguments and errors are those of ``answer``.

        Returns:
            The finished answer: ``text``, ``tokens``, ``kept``, ``finish_reason`` and ``stats``.

        Example::

            print(model.ask("cat.jpg", "What is this?").text)
        """
        answer = self.answer(
            picture,
            question,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=stop,
        )
        _ = answer.text
        return answer

    def conversation(self, picture: Pictures = (), *, reuse: bool = True) -> Conversation:
        """Begin a conversation about pictures; arguments and errors are those of ``Conversation``."""
        return Conversation(self.runtime, picture, reuse=reuse)

    def answer_batch(
        self,
        questions: Sequence[tuple[Picture | ImageFeatures, str]],
        *,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> list[Answer]:
        """Answer several questions at once, each about its own picture, in a bundle exported with ``batch``.

        Args:
            questions: Picture and question of each, as many as the bundle takes at once or fewer; fewer take as long.
            max_new_tokens: As in ``answer``, as all that follows; of each.
            temperature: Likewise.
            top_p: Likewise.
            top_k: Likewise.
            seed: Likewise; rows with the same seed draw alike.
            stop: Likewise.

        Returns:
            An answer per question, which is what ``answer`` would give. They are generated while one of them is read,
            in any order or thread; their times are those of all together.

        Raises:
            InputError: The bundle takes one question at a time or fewer than these; or as ``answer``.

        Example::

            for answer in model.answer_batch([("cat.jpg", "What is this?"), ("dog.jpg", "What colour is it?")]):
                print(answer.text)
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        return self.runtime.answer_batch(
            [
                Asked(
                    image=picture if isinstance(picture, ImageFeatures) else open_picture(picture),
                    prompt=question,
                    max_new_tokens=max_new_tokens,
                    sampling=sampling,
                    stop=stop,
                )
                for picture, question in questions
            ]
        )

    def ask_batch(
        self,
        questions: Sequence[tuple[Picture | ImageFeatures, str]],
        *,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> list[Answer]:
        """Answer any number of questions, as many at once as the bundle takes; arguments are those of ``answer_batch``.

        Returns:
            The finished answers, in the order of the questions.

        Raises:
            InputError: As ``answer``.

        Example::

            answers = model.ask_batch([("cat.jpg", "What is this?"), ("dog.jpg", "What colour is it?")])
        """
        found: list[Answer] = []
        options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "seed": seed,
            "stop": stop,
        }
        for begin in range(0, len(questions), self.manifest.rows):
            some = questions[begin : begin + self.manifest.rows]
            if self.manifest.batch is None:
                found += [self.ask(*some[0], **options)]
                continue
            found += self.answer_batch(some, **options)
            for answer in found:
                _ = answer.text
        return found

    def close(self) -> None:
        """Let go of the graphs and their memory; answers that are under way end with an ``InputError``."""
        self.runtime.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@seal.may_be_unsealed
def load(
    path: str | PathLike[str],
    *,
    threads: int | None = None,
    unsealed: bool = False,
    image_cache: int = 0,
    prefill_chunk: int | None = None,
) -> Model:
    """Load a bundle for answering. Needs neither torch nor transformers.

    Args:
        path: The bundle's directory.
        threads: Threads within an operator, where the CPU computes; None leaves it to the back end.
        unsealed: Read a bundle whose manifest was edited, or is of the format before seals, as it is.
        image_cache: Bytes of visual tokens that are kept of the latest pictures: for a picture that comes again, as
            its pixels say, the vision graph doesn't run. 0: none are.
        prefill_chunk: The decoder takes so many tokens of a prompt at once, which bounds its memory; None: all of them.

    Raises:
        BundleError: It isn't a bundle, is damaged, or has no engines for this GPU.
        TargetError: It was exported for a device that isn't here.
        MissingExtraError: The back end isn't installed.
        InputError: Its prompts can't be taken in chunks.

    Example::

        with lmmprune.load("out") as model:
            print(model.ask("cat.jpg", "What is this?").text)
    """
    return Model(path, threads=threads, unsealed=unsealed, image_cache=image_cache, prefill_chunk=prefill_chunk)
