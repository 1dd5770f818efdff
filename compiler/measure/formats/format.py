"""What there is to know of a public data set: its layout, how it is asked, what is right, and its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.measure.figures import Figures
from lmmprune.compiler.measure.formats.folder import Folder

SHORT = "{question}\nAnswer the question using a single word or phrase."
"""How LLaVA-1.5 asks for short answers. Reference: Liu et al., 2023, arXiv 2310.03744, and its guide to evaluation."""

LETTER = "{question}\nAnswer with the option's letter from the given choices directly."
"""How it asks for one of several options."""

Judge = Callable[[Question, str], float]
"""Says how right an answer to a question is, 0..1."""

Score = Callable[[Sequence[Question], Sequence[str], Sequence[float]], Figures]
"""Makes the figures of questions, what was said to each, and how right that was."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A public data set.

    Attributes:
        name: What ``--format`` takes.
        title: What people call it.
        layout: The files of its folder, in words.
        reports: Its figures, in words.
        reference: The paper.
        template: The prompt, with ``{question}``.
        read: Reads the questions of a folder with this prompt; pictures that aren't there are noted in the folder.
        judge: Says what is right.
        score: Makes the published figures; the first one is what the set is known by.
        max_new_tokens: How long an answer may be.
    """

    name: str
    title: str
    layout: str
    reports: str
    reference: str
    template: str
    read: Callable[[Folder], list[Question]]
    judge: Judge
    score: Score
    max_new_tokens: int = 16
