"""Find what a chat template puts in front of a later question that brings pictures of its own."""

from __future__ import annotations

from collections.abc import Callable

from lmmprune.compiler.runtime.compose import ANSWER, SLOT
from lmmprune.errors import ModelError

NEXT = "{next}"
_MOST = 3  # pictures that it is tried with


def pictured_turn(render: Callable[[int], str], text: str, unit: str) -> str:
    """Return a further turn whose question has one picture, with ``{answer}`` and ``{prompt}``; "" where there is none.

    Args:
        render: Gives a conversation of ``{prompt}``, ``{answer}`` and ``{next}``, which comes with so many pictures.
        text: The template of one question, as the chat template renders it.
        unit: What it writes for a picture; "" if that can't be said.
    """
    before, after = text.split(SLOT)
    turns = {}
    try:
        for pictures in range(1, _MOST + 1):
            whole = render(pictures)
            if not (whole.startswith(before + SLOT) and whole.endswith(after)):
                return ""
            turns[pictures] = whole[len(before + SLOT) : len(whole) - len(after)]
    except ModelError:
        return ""
    one = turns[1]
    if not unit or any(one.count(part) != 1 for part in (ANSWER, NEXT, unit)) or one.index(ANSWER) > one.index(NEXT):
        return ""
    if any(turn != one.replace(unit, unit * pictures) for pictures, turn in turns.items()):
        return ""
    return one.replace(NEXT, SLOT)
