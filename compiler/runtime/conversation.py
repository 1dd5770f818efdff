"""The messages of a chat as a bundle takes them: pictures in the first one, and what was said in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from lmmprune.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Said(Generic[T]):
    """One message.

    Attributes:
        role: Who said it.
        pictures: What leads to its pictures.
        texts: Its pieces of text, which make lines of their own.
    """

    role: str
    pictures: Sequence[T]
    texts: Sequence[str]


def read_conversation(messages: Sequence[Said[T]], images: int = 1) -> tuple[tuple[T, ...], tuple[str, ...]]:
    """Return the pictures, and a question, its answer, the next question, ...

    Args:
        messages: In their order.
        images: Pictures that the bundle takes at most.

    Raises:
        InputError: Roles don't take turns from ``user`` to ``user``, or there are none or too many pictures in the
            first message, or one in another.
    """
    if not messages:
        raise InputError("messages: none, expected a question")
    for number, message in enumerate(messages):
        expected = "assistant" if number % 2 else "user"
        if message.role != expected:
            more = (
                " (a bundle's prompt has no place for instructions)" if message.role in ("system", "developer") else ""
            )
            raise InputError(
                f"messages: number {number + 1} is of the role '{message.role}', expected '{expected}'{more}"
            )
    if len(messages) % 2 == 0:
        raise InputError("messages: the last one is an answer, expected a question")
    if any(message.pictures for message in messages[1:]):
        raise InputError("messages: a picture in a later message, expected it in the first one")
    pictures = messages[0].pictures
    if not 1 <= len(pictures) <= images:
        most = "this bundle takes 1" if images == 1 else f"this bundle takes 1 to {images}"
        raise InputError(f"messages: {len(pictures)} pictures, {most}")
    return tuple(pictures), tuple("\n".join(message.texts) for message in messages)
