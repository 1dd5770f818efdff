"""MME: fourteen subtasks of perception and cognition, two questions to a picture, one to be answered yes, one no.

Reference: Fu et al., MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models, 2023, arXiv
    2306.13394; what counts as yes or no is taken from its released evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.measure.figures import Figures, Formula, kinds_of_pictures, ratio
from lmmprune.compiler.measure.formats.folder import Folder, load, text_of
from lmmprune.compiler.measure.formats.format import SHORT, Format
from lmmprune.compiler.measure.statistics import Floats
from lmmprune.errors import InputError
from lmmprune.limits import is_file

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

_ASKED_FOR = "Please answer yes or no."  # LLaVA-1.5's own wording takes its place
_PER_PICTURE = 2
_WIDTH = 4  # counts of a subtask: questions, right ones, pictures, those with both questions right
_MOST = 200.0  # points of a subtask: accuracy and accuracy+, each in percent


def read(folder: Folder) -> list[Question]:
    """Return the questions of all subtasks that are there, two after the other for each picture.

    A subtask is a folder of pictures and text files of the same names, or has ``images/`` and ``questions_answers_YN/``
    for them.
    """
    found = [question for subtask in (*PERCEPTION, *COGNITION) for question in _subtask(folder, subtask)]
    if not found:
        raise InputError(f"there is no subtask of MME in '{folder.path}': give a folder with {folder.layout}")
    return found


def _subtask(folder: Folder, subtask: str) -> Iterator[Question]:
    home = folder.path / subtask
    apart = home / "questions_answers_YN"
    texts, below = (apart, f"{subtask}/images") if apart.is_dir() else (home, subtask)
    for path in sorted(texts.glob("[!.]*.txt")):
        picture = _picture(folder, path.stem, below)
        lines = [line for line in text_of(path).splitlines() if line.strip()]
        if len(lines) != _PER_PICTURE:
            raise InputError(f"'{path}' has {len(lines)} lines: expected two, a question, a tab, and Yes or No each")
        for line in lines:
            question, tab, answer = line.rpartition("\t")
            if not tab or answer.strip().lower() not in ("yes", "no"):
                raise InputError(f"'{path}' has the line '{line[:60]}': expected a question, a tab, and Yes or No")
            yield Question(
                picture=str(picture),
                load=load(picture),
                prompt=SHORT.format(question=question.replace(_ASKED_FOR, "").strip()),
                answers=(answer.strip().lower(),),
                kind=subtask,
                group=str(picture),
            )


def _picture(folder: Folder, stem: str, below: str) -> Path:
    """Return a subtask's picture, whichever kind of file it is."""
    tried = [folder.picture(f"{below}/{stem}{suffix}") for suffix in (".jpg", ".png", ".jpeg")]
    return next((path for path in tried if is_file(path)), tried[0])


def verdict(said: str) -> str:
    """Return yes, no or other: the whole answer, or what its first four letters hold, yes before no."""
    text = said.lower()
    start = text[:4]
    return text if text in ("yes", "no") else "yes" if "yes" in start else "no" if "no" in start else "other"


def judge(question: Question, said: str) -> float:
    """Return whether the verdict is the answer."""
    return float(verdict(said) == question.answers[0])


def score(questions: Sequence[Question], said: Sequence[str], right: Sequence[float]) -> Figures:
    """Return points: perception, cognition and both, and of each subtask with its accuracy and accuracy+.

    A subtask has ``100 (accuracy + accuracy+)`` points; accuracy+ is the share of pictures with both questions right.
    The sums are over the subtasks that are there, and ``most`` says of how many points.
    """
    present = [name for name in (*PERCEPTION, *COGNITION) if any(question.kind == name for question in questions)]
    counts = np.zeros((len(questions), _WIDTH * len(present)))
    both: dict[str, bool] = {}
    for question, good in zip(questions, right, strict=True):
        both[str(question.group)] = both.get(str(question.group), True) and good == 1
    seen: set[str] = set()
    for row, (question, good) in enumerate(zip(questions, right, strict=True)):
        start, group = _WIDTH * present.index(str(question.kind)), str(question.group)
        # A picture counts once, with its first question.
        counts[row, start : start + _WIDTH] = 1, good, group not in seen, group not in seen and both[group]
        seen.add(group)
    formulas = {}
    for name, chosen in (("perception", PERCEPTION), ("cognition", COGNITION), ("total", present)):
        starts = [_WIDTH * index for index, subtask in enumerate(present) if subtask in chosen]
        if starts:
            formulas[name] = Formula(of=_sum(starts), most=_MOST * len(starts))
    for index, subtask in enumerate(present):
        start = _WIDTH * index
        formulas[subtask] = Formula(of=_sum([start]), most=_MOST)
        formulas[f"{subtask}, accuracy"] = Formula(of=_part(start))
        formulas[f"{subtask}, accuracy+"] = Formula(of=_part(start + 2))
    return Figures(
        counts=counts,
        formulas=formulas,
        pictures=tuple(question.picture for question in questions),
        strata=kinds_of_pictures(questions),
    )


def _part(start: int) -> Callable[[Floats], Floats]:
    return lambda counts: ratio(counts[..., start + 1], counts[..., start])


def _sum(starts: Sequence[int]) -> Callable[[Floats], Floats]:
    def of(counts: Floats) -> Floats:
        parts = [_part(place)(counts) for start in starts for place in (start, start + 2)]
        found: Floats = 100 * np.sum(parts, axis=0)
        return found

    return of


MME = Format(
    name="mme",
    title="MME",
    layout="a folder for each subtask (existence, ..., OCR, ..., code_reasoning) with pictures and .txt files",
    reports="points (accuracy + accuracy+) of each subtask; sums of perception and cognition",
    reference="Fu et al., 2023, arXiv 2306.13394",
    template=SHORT,
    read=read,
    judge=judge,
    score=score,
)
