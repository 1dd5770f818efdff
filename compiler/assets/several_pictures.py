"""Find what a template writes for each of several pictures."""

from __future__ import annotations

from collections.abc import Callable

from lmmprune.errors import ModelError

_MOST = 3  # pictures that a rule found with two is tried on


def unit_of_chat(render: Callable[[int], str], token: str) -> str:
    """Return what a chat template writes for a picture, once for each of several; "" where it does otherwise.

    A template may number its pictures, or count them: no text repeated says that.

    Args:
        render: Gives the text around a question with so many pictures before it.
        token: Text of the placeholder, which the unit has once.
    """
    try:
        texts = {pictures: render(pictures) for pictures in range(1, _MOST + 1)}
    except ModelError:
        return ""
    one, length = texts[1], len(texts[2]) - len(texts[1])
    for begin in range(len(one) - length + 1) if length > 0 else ():
        unit = one[begin : begin + length]
        before, behind = one[:begin], one[begin + length :]
        if unit.count(token) == 1 and all(text == before + unit * many + behind for many, text in texts.items()):
            return unit
    return ""


def bare_of_chat(render: Callable[[int], str], text: str, unit: str, token: str, slot: str) -> str:
    """Return the text around a question without a picture before it.

    Args:
        render: As for ``unit_of_chat``.
        text: The text with one picture.
        unit: What stands for it.
        token: Text of the placeholder.
        slot: Where the question stands.
    """
    try:
        found = render(0)
    except ModelError:
        found = ""
    # A template may want a picture.
    return found if found.count(slot) == 1 and token not in found else text.replace(unit, "")


def unit_of_text(template: str, picture: str) -> str:
    """Return the same of a template that was given as text: the picture, and a line break if one follows it [ours]."""
    line = f"{picture}\n"
    return line if line in template else picture
