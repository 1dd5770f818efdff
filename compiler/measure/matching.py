"""When an answer counts as right: the rules that data sets use, by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_INSIDE = re.compile(r"(?<=\d),(?=\d)")  # 1,000
_STOP = re.compile(r"(?<!\d)\.|\.(?!\d)")  # any but that of 7.5
_MARKS = re.compile(r"""[;/\[\]"{}()=+\\_<>@`,?!:*-]""")
_VOTES = 3  # people who must have given an answer for it to be wholly right

Match = Callable[[str, Sequence[str]], float]
"""Says how right an answer is, 0..1, by the expected ones."""


def normalized(answer: str) -> str:
    """Return an answer in lower case without surrounding white space and without a final full stop."""
    return answer.strip().removesuffix(".").rstrip().casefold()


def first_word(answer: str) -> str:
    """Return the first word of a normalized answer, up to white space, without the punctuation behind it."""
    return next(iter(normalized(answer).split()), "").rstrip(".,;:!?")


def exact(said: str, answers: Sequence[str]) -> bool:
    """Return whether it equals one of them, apart from case, white space around it and a final full stop."""
    return any(normalized(said) == normalized(answer) for answer in answers)


def contains(said: str, answers: Sequence[str]) -> bool:
    """Return whether one of them stands in it as whole words, apart from case."""
    text = normalized(said)
    return any(re.search(rf"(?<!\w){re.escape(normalized(answer))}(?!\w)", text) for answer in answers)


def vqa(said: str, answers: Sequence[str]) -> float:
    """Return how many people gave this answer, as VQA counts: a third for each, at most 1.

    With several answers, each in turn is left out and the results are averaged; a single one is right or wrong. Before,
    both sides lose case, articles, punctuation and apostrophes (these in place of the table of contractions [ours]),
    and numbers up to ten are written in digits.

    Reference: Antol et al., VQA, 2015, arXiv 1505.00468; evaluation of VQA v2.
    """
    same = [vqa_normalized(answer) == vqa_normalized(said) for answer in answers]
    if len(same) == 1:
        return float(same[0])
    total = sum(same)
    return sum(min(1.0, (total - one) / _VOTES) for one in same) / len(same)


def vqa_normalized(answer: str) -> str:
    """Return an answer as VQA compares it."""
    text = _STOP.sub("", _MARKS.sub(" ", _INSIDE.sub("", answer.casefold().replace("'", ""))))
    return " ".join(_DIGITS.get(word, word) for word in text.split() if word not in _ARTICLES)


MATCHES: Mapping[str, Match] = {"exact": exact, "contains": contains, "vqa": vqa}
