"""When an answer counts as right: the rules that data sets use, by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from lmmprune.compiler.measure.vqa_text import vqa_normalized

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
    """Return how many people gave this answer, as VQA counts: a third for each, at most 1 (``agreement``).

    Before, both sides are brought into VQA's form (``vqa_normalized``), also where all people agree [ours: the released
    evaluation leaves it out there]. A single answer is right or wrong [ours].

    Reference: Antol et al., VQA, 2015, arXiv 1505.00468; evaluation of VQA v2.
    """
    return agreement(vqa_normalized(said), [vqa_normalized(answer) for answer in answers])


def agreement(said: str, answers: Sequence[str]) -> float:
    """Return ``min(matches / 3, 1)``, each of the answers left out in turn, averaged; one alone is right or wrong."""
    same = [answer == said for answer in answers]
    if len(same) == 1:
        return float(same[0])
    total = sum(same)
    return sum(min(1.0, (total - one) / _VOTES) for one in same) / len(same)


MATCHES: Mapping[str, Match] = {"exact": exact, "contains": contains, "vqa": vqa}
