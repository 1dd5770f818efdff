"""Refuse texts that no tokenizer and no file can hold."""

from __future__ import annotations

from lmmprune.errors import InputError


def check_text(text: str, what: str = "the prompt") -> str:
    r"""Return a text that is whole.

    Python reads bytes that aren't UTF-8, and JSON's ``\ud800``, as halves of a character.

    Raises:
        InputError: It holds such a half.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        shown = text.encode("utf-8", "backslashreplace").decode()
        raise InputError(f"{what} '{shown}' holds half a character, which isn't valid UTF-8: write it anew")
    return text
