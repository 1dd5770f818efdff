"""The model class that lmms-eval runs; it imports lmms-eval, which alone imports it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessage, ChatMessages
from PIL import Image
from tqdm import tqdm

from lmmprune.compiler.bundle import seal
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.harness.settings import read_settings
from lmmprune.compiler.runtime.answer import Answer, Stats
from lmmprune.compiler.runtime.conversation import Said, read_conversation
from lmmprune.compiler.runtime.image_features import ImageFeatures
from lmmprune.compiler.runtime.open_picture import open_picture
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.errors import InputError, suggestion

_ARGUMENTS = ("bundle", "threads", "unsealed")


class LmmpruneChat(lmms):  # type: ignore[misc]  # lmms-eval ships no type information
    """A bundle as a chat model of lmms-eval: ``--model lmmprune --model_args bundle=out``.

    It answers one question after the other; questions about one picture that follow each other share its vision pass.
    """

    is_simple = False

    def __init__(
        self,
        *,
        bundle: object = None,
        threads: int | None = None,
        unsealed: bool = False,
        batch_size: object = 1,
        max_batch_size: object = None,
        device: object = None,
        **others: object,
    ) -> None:
        """Load a bundle; lmms-eval calls this with what stands in ``--model_args``, and with its own options.

        Args:
            bundle: The bundle's directory.
            threads: Threads within an operator, where the CPU computes; None leaves it to the back end.
            unsealed: Read a bundle whose manifest was edited, or is of the format before seals, as it is.
            batch_size: ``--batch_size``: 1.
            max_batch_size: ``--max_batch_size``: not given.
            device: ``--device``: not given; a bundle says itself where it runs.
            others: Nothing else.

        Raises:
            InputError: An argument is missing, unknown or of no use here.
            LmmpruneError: The bundle can't be used here, as ``Runtime``.
        """
        super().__init__()
        for name in others:
            hint = suggestion(name, _ARGUMENTS)
            raise InputError(f"--model_args: no argument '{name}'{hint}")
        if bundle is None:
            raise InputError("--model_args: no bundle, expected bundle=DIR")
        if str(batch_size) != "1" or max_batch_size is not None:
            raise InputError(f"--batch_size {batch_size}: a bundle answers one question at a time, expected 1")
        if device is not None:
            raise InputError(f"--device {device}: a bundle was exported for its target: leave the option out")
        # A name made of digits reaches us as a number.
        with seal.unsealed(unsealed):
            self._runtime = Runtime(Bundle.open(Path(str(bundle))), threads=threads)
        self._seen: tuple[Image.Image, ImageFeatures] | None = None

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answer questions; the answers have counts of the tokens that entered the decoder and that left it.

        Raises:
            InputError: A question isn't one about pictures that the bundle takes, or asks for what a bundle can't do.
        """
        start = time.perf_counter()
        results, done = [], list[Stats]()
        for request in tqdm(requests, desc="lmmprune", disable=self.rank != 0):
            answer = self._answer(request)
            text, stats = answer.text, answer.stats
            done.append(stats)
            counts = TokenCounts(input_tokens=stats.prompt_tokens, output_tokens=stats.new_tokens)
            results.append(GenerationResult(text=text, token_counts=counts))
        _log(done, time.perf_counter() - start)
        return results

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> NoReturn:
        """Refuse tasks whose next question depends on the answer.

        Raises:
            InputError: Always.
        """
        _refuse("generate_until_multi_round")

    def loglikelihood(self, requests: Sequence[Instance]) -> NoReturn:
        """Refuse tasks that rank given answers.

        Raises:
            InputError: Always.
        """
        _refuse("loglikelihood")

    def _answer(self, request: Instance) -> Answer:
        _, doc_to_messages, kwargs, doc_id, task, split = request.args
        try:
            asked = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
            images = self._runtime.bundle.manifest.images
            pictures, words = read_conversation([_said(message) for message in asked.messages], images)
            settings = read_settings(kwargs)
            return self._runtime.answer(
                [self._encode(picture) for picture in pictures],
                words,
                settings.max_new_tokens,
                sampling=settings.sampling,
                stop=settings.stop,
            )
        except InputError as error:
            raise InputError(f"task '{task}', document {doc_id}: {error}") from error

    def _encode(self, picture: Any) -> ImageFeatures:
        image = open_picture(picture)
        if self._seen is None or self._seen[0] != image:
            self._seen = image, self._runtime.encode_image(image)
        return self._seen[1]


def _said(message: ChatMessage) -> Said[Any]:
    for part in message.content:
        if part.type not in ("image", "text"):
            raise InputError(f"messages: a part of the type '{part.type}', a bundle takes pictures and text")
    return Said(
        role=message.role,
        pictures=[part.url for part in message.content if part.type == "image"],
        texts=[part.text for part in message.content if part.type == "text"],
    )


def _log(done: Sequence[Stats], seconds: float) -> None:
    """Let lmms-eval's results say how fast it was, and how many image tokens were kept."""
    tokens = sum(stats.new_tokens for stats in done)
    means = {
        "ttft_ms": sum(stats.ttft_ms for stats in done) / max(len(done), 1),
        "image_tokens": sum(stats.image_tokens for stats in done) / max(len(done), 1),
    }
    log_metrics(
        total_elapsed_time=seconds, total_gen_tokens=tokens, avg_speed=tokens / seconds, additional_metrics=means
    )


def _refuse(kind: str) -> NoReturn:
    raise InputError(f"a task of the output_type '{kind}': a bundle answers those of the type 'generate_until'")
