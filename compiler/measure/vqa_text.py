"""Bring answers into the form in which VQA compares them: punctuation, numbers, articles and contractions.

Reference: Antol et al., VQA: Visual Question Answering, 2015, arXiv 1505.00468, with the steps of the evaluation that
    was released for VQA v2 (Goyal et al., 2017, arXiv 1612.00837).
"""

from __future__ import annotations

import re

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
# The released pattern looks behind for a digit by a mistyped group that never matches: it is a dot before no digit.
_STOP = re.compile(r"\.(?!\d)")
_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've"
    " he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't"
    " not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll"
    " somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd"
    " there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll"
    " what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's"
    " won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've"
)


def _contractions() -> dict[str, str]:
    """Return what stands for a contraction: itself with one of its apostrophes left out."""
    found = {
        word[:place] + word[place + 1 :]: word
        for word in _CONTRACTED.split()
        for place, letter in enumerate(word)
        if letter == "'"
    }
    # The released table has this one the other way round.
    return found | {"somebody'd": "somebodyd"}


_CONTRACTIONS = _contractions()


def vqa_normalized(answer: str) -> str:
    """Return an answer as VQA v2 compares it.

    A mark with a blank beside it goes without a trace, and so do all of them in an answer with a number like 1,000;
    another one leaves a blank. A dot goes unless a digit follows. Words become lower case, numbers up to ten digits,
    articles go, and contractions get their apostrophe back.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    whole, glued = text, _THOUSANDS.search(text) is not None
    for mark in _MARKS:
        beside = f"{mark} " in whole or f" {mark}" in whole
        text = text.replace(mark, "" if beside or glued else " ")
    words = (_DIGITS.get(word, word) for word in _STOP.sub("", text).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
