"""POPE: is an object that isn't there said to be there? Yes or no about objects of COCO's pictures.

Reference: Li et al., Evaluating Object Hallucination in Large Vision-Language Models, 2023, arXiv 2305.10355; what
    counts as "no" is taken from its released evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.measure.figures import Figures, Formula, kinds_of_pictures, ratio
from lmmprune.compiler.measure.formats.folder import Folder, json_lines, load, word
from lmmprune.compiler.measure.formats.format import SHORT, Format
from lmmprune.compiler.measure.statistics import Floats
from lmmprune.errors import InputError

CATEGORIES = ("random", "popular", "adversarial")
"""How the objects that aren't there were chosen, from the easiest on."""

_WIDTH = 4  # counts of a category: true and false positives, false and true negatives


def read(folder: Folder) -> list[Question]:
    """Return the questions of the three files; the kind is the category."""
    questions = []
    for category in CATEGORIES:
        for where, row in json_lines(folder.file(f"coco_pope_{category}.json", "coco")):
            label = word(row, "label", where).lower()
            if label not in ("yes", "no"):
                raise InputError(f"{where} has the label '{label}': expected yes or no")
            picture = folder.picture(word(row, "image", where), "val2014", "images")
            questions.append(
                Question(
                    picture=str(picture),
                    load=load(picture),
                    prompt=SHORT.format(question=word(row, "text", where)),
                    answers=(label,),
                    kind=category,
                )
            )
    return questions


def verdict(said: str) -> str:
    """Return ``no`` where the first sentence has one of the words no, No and not, else ``yes``."""
    words = said.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & {*words} else "yes"


def judge(question: Question, said: str) -> float:
    """Return whether the verdict is the label."""
    return float(verdict(said) == question.answers[0])


def score(questions: Sequence[Question], said: Sequence[str], right: Sequence[float]) -> Figures:
    """Return F1, accuracy, precision, recall and the share of yes, averaged over the categories, and each of them.

    "Yes" is the positive answer. Where there is no positive one, precision, recall and F1 are 0.
    """
    present = [category for category in CATEGORIES if any(question.kind == category for question in questions)]
    counts = np.zeros((len(questions), _WIDTH * len(present)))
    for row, (question, answer) in enumerate(zip(questions, said, strict=True)):
        yes, truth = verdict(answer) == "yes", question.answers[0] == "yes"
        place = (0 if truth else 1) if yes else (2 if truth else 3)
        counts[row, _WIDTH * present.index(str(question.kind)) + place] = 1
    formulas = {name: Formula(of=_mean(figure, len(present))) for name, figure in _FIGURES.items()}
    for index, category in enumerate(present):
        for name, figure in _FIGURES.items():
            formulas[f"{name}, {category}"] = Formula(of=_one(figure, index))
    return Figures(
        counts=counts,
        formulas=formulas,
        pictures=tuple(question.picture for question in questions),
        strata=kinds_of_pictures(questions),
    )


_Figure = Callable[[Floats], Floats]


def _f1(counts: Floats) -> Floats:
    return ratio(2 * counts[..., 0], 2 * counts[..., 0] + counts[..., 1] + counts[..., 2])


def _accuracy(counts: Floats) -> Floats:
    return ratio(counts[..., 0] + counts[..., 3], counts.sum(axis=-1))


def _precision(counts: Floats) -> Floats:
    return ratio(counts[..., 0], counts[..., 0] + counts[..., 1])


def _recall(counts: Floats) -> Floats:
    return ratio(counts[..., 0], counts[..., 0] + counts[..., 2])


def _yes(counts: Floats) -> Floats:
    return ratio(counts[..., 0] + counts[..., 1], counts.sum(axis=-1))


_FIGURES: dict[str, _Figure] = {
    "F1": _f1,
    "accuracy": _accuracy,
    "precision": _precision,
    "recall": _recall,
    "yes": _yes,
}


def _one(figure: _Figure, index: int) -> _Figure:
    return lambda counts: figure(counts[..., _WIDTH * index : _WIDTH * (index + 1)])


def _mean(figure: _Figure, categories: int) -> _Figure:
    def of(counts: Floats) -> Floats:
        found: Floats = np.mean([_one(figure, index)(counts) for index in range(categories)], axis=0)
        return found

    return of


POPE = Format(
    name="pope",
    title="POPE",
    layout="coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json and COCO's val2014/",
    reports="F1, accuracy, precision, recall, share of yes: of each way of choosing objects, and their mean",
    reference="Li et al., 2023, arXiv 2305.10355",
    template=SHORT,
    read=read,
    judge=judge,
    score=score,
)
