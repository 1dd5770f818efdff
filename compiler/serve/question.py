"""What a request asks of a bundle: the pictures, the question, and how it is answered."""

from __future__ import annotations

from dataclasses import dataclass

from lmmprune.compiler.runtime.conversation import Said, read_conversation
from lmmprune.compiler.runtime.sampling import Sampling
from lmmprune.compiler.runtime.stop_strings import StopStrings
from lmmprune.compiler.serve.errors import ApiError
from lmmprune.compiler.serve.protocol import ChatRequest, ImagePart, Message, TextPart
from lmmprune.errors import InputError

_STOPS = 16


@dataclass(frozen=True, kw_only=True)
class Question:
    """One request in the run-time's words.

    Attributes:
        urls: Where the pictures are.
        words: The question; or a conversation: a question, its answer, the next question, ...
        max_new_tokens: The answer ends after so many.
        sampling: How tokens are chosen.
        stop: Texts that end it.
    """

    urls: tuple[str, ...]
    words: tuple[str, ...]
    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]


def question_of(request: ChatRequest, max_tokens: int, images: int = 1) -> Question:
    """Read a request.

    Args:
        request: Its body.
        max_tokens: New tokens that this server gives at most, and where nothing is asked for.
        images: Pictures that the bundle takes at most.

    Raises:
        ApiError: It asks for what a bundle can't do.
        InputError: A sampling option is out of its range.
    """
    urls, words = _conversation(request.messages, images)
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if len(stop) > _STOPS:
        raise ApiError(f"stop: {len(stop)} texts, at most {_STOPS} are taken", param="stop")
    StopStrings(stop)  # refuses what isn't one
    return Question(
        urls=urls, words=words, max_new_tokens=_limit(request, max_tokens), sampling=_sampling(request), stop=stop
    )


def _conversation(messages: list[Message], images: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return where the pictures are, and what was said: a question, its answer, the next question, ..."""
    try:
        return read_conversation([_said(message) for message in messages], images)
    except InputError as error:
        raise ApiError(str(error), param="messages") from error


def _said(message: Message) -> Said[str]:
    parts = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
    return Said(
        role=message.role,
        pictures=[part.image_url.url for part in parts if isinstance(part, ImagePart)],
        texts=[part.text for part in parts if isinstance(part, TextPart)],
    )


def _limit(request: ChatRequest, most: int) -> int:
    asked = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(asked) > 1:
        raise ApiError("max_tokens and max_completion_tokens differ: give one", param="max_tokens")
    wanted = asked.pop() if asked else most
    assert wanted is not None
    if wanted > most:
        name = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
        raise ApiError(f"{name} is {wanted}, this server gives at most {most}", param=name)
    return wanted


def _sampling(request: ChatRequest) -> Sampling:
    """Return how tokens are chosen: without a temperature the likeliest one, as ``run`` does [ours]."""
    top_p = 1.0 if request.top_p is None else request.top_p
    top_k = 0 if request.top_k in (None, -1) else request.top_k
    assert top_k is not None
    temperature = request.temperature
    if temperature is None and top_p == 1 and not top_k:
        temperature = 0.0  # every seed gives the same answer
    return Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=request.seed)
