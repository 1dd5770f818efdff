"""Questions with options A, B, ...: how they are written, and which letter an answer names."""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"
_NAMED = re.compile(r"The answer is ([A-J])")
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ARTICLE = 3  # words: in a longer answer, "A" is an article


def with_options(question: str, options: Sequence[str]) -> str:
    """Return a question with its options, a line each, as LLaVA-1.5 writes them."""
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))])


def letter_said(said: str, options: Sequence[str]) -> str | None:
    """Return the letter that an answer is, begins with (``B. ...``) or names (``The answer is B``); None: none.

    Reference: ScienceQA (Lu et al., 2022, arXiv 2209.09513), as LLaVA evaluates it.
    """
    text, letters = said.replace("\n", ". ").strip(), LETTERS[: len(options)]
    if len(text) == 1 and text in letters:
        return text
    if text[1:3] == ". " and text[0] in letters:
        return text[0]
    named = _NAMED.search(text)
    return named[1] if named and named[1] in letters else None


def letter_meant(said: str, options: Sequence[str]) -> str | None:
    """Return the only letter among an answer's words, or that of the only option whose text it holds; None: neither.

    Reference: MMBench (Liu et al., 2023, arXiv 2307.06281), section 4.2: the matching before a language model is asked
        for what is still open, which we count as wrong [ours].
    """
    words, letters = said.translate(_MARKS).split(), LETTERS[: len(options)]
    present = [letter for letter in letters if letter in words]
    # "A" in a sentence may be an article; then the texts decide.
    if len(present) == 1 and ("A" not in words or len(words) <= _ARTICLE):
        return present[0]
    held = [letter for letter, text in zip(letters, options, strict=True) if text.strip().lower() in said.lower()]
    return held[0] if len(held) == 1 else None
