"""Find what a chat template puts between a question, its answer, and the next question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmmprune.compiler.assets.chat_template import ChatTemplate
from lmmprune.compiler.runtime.compose import ANSWER, STRIPS, compose
from lmmprune.errors import ModelError
from lmmprune.models.private_names import render_chat

Content = Callable[[str], Any]
"""Makes a message's content of a text, as a template wants it."""

_QUESTION, _NEXT = "{prompt}", "{next}"
# Conversations that tell templates apart which trim, number their turns, or leave early answers out.
_PROBES = (
    (" a ", " b ", " c "),
    ("<b>&'\"</b>", "Two\n\nlines\n", "\nend", "more", " and more "),
    ("1", "2", "3", "4", "5", "6", "7"),
)


def text_part(text: str) -> list[dict[str, str]]:
    """Return a content of one text."""
    return [{"type": "text", "text": text}]


def further_turn(
    chat: ChatTemplate, special: Mapping[str, str], contents: tuple[Content, Content], text: str, strip: str
) -> tuple[str, str]:
    """Return the text of a further turn, and what an answer's ends lose in it; both "" where there is none.

    A template may refuse answers, or treat them in a way that no text with two places says: then a bundle takes one
    question, and whoever asks more is told so.

    Args:
        chat: The template.
        special: Name -> special token, which templates may write.
        contents: Make a message of a text: the first one, which has the picture, and the others.
        text: The template of one question, as the chat template renders it.
        strip: What a question's ends lose.
    """

    def render(words: Sequence[str]) -> str:
        messages = [
            {"role": "assistant" if number % 2 else "user", "content": contents[number > 0](word)}
            for number, word in enumerate(words)
        ]
        return render_chat(messages, chat.text, special)

    before, after = text.split(_QUESTION)
    try:
        whole = render((_QUESTION, ANSWER, _NEXT))
        if not (whole.startswith(before + _QUESTION) and whole.endswith(after)):
            return "", ""
        turn = whole[len(before + _QUESTION) : len(whole) - len(after)]
        if turn.count(ANSWER) != 1 or turn.count(_NEXT) != 1 or turn.index(ANSWER) > turn.index(_NEXT):
            return "", ""
        turn = turn.replace(_NEXT, _QUESTION)
        for ends in STRIPS:
            composed = ("".join(part for part, _ in compose(text, turn, words, strip, ends)) for words in _PROBES)
            if all(render(words) == mine for words, mine in zip(_PROBES, composed, strict=True)):
                return turn, ends
    except ModelError:
        return "", ""
    return "", ""
