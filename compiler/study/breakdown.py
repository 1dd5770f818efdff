"""What a cell's answers say beyond one share: by kind of question, by what a smaller picture gets wrong, by tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.compare.fidelity import Measures, summarize
from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.measure.statistics import Estimate, estimate, resample_means
from lmmprune.compiler.study.cell_result import CellResult
from lmmprune.compiler.study.grid import Cell

DOWNSAMPLE = "downsample"


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """One cell's answers, taken apart; shares are 0..1.

    Attributes:
        kinds: Kind of question -> share that is right; none where there is only one kind.
        hard: Share right of the questions that ``downsample`` gets wrong at the same ratio and precision; None where it
            isn't in the grid or there are no such questions.
        easy: The same of all other questions.
        hard_questions: How many ``downsample`` gets wrong.
        measures: Where nobody knows right answers, how near it stays to the unpruned model.
    """

    kinds: Mapping[str, Estimate] = field(default_factory=dict)
    hard: Estimate | None = None
    easy: Estimate | None = None
    hard_questions: int = 0
    measures: Measures | None = None


def break_down(results: Mapping[Cell, CellResult], questions: Sequence[Question]) -> dict[Cell, Breakdown]:
    """Return it for every cell.

    Args:
        results: Of the cells that weren't refused.
        questions: In the order of their answers.
    """
    right = {cell: np.array(result.correct, bool) for cell, result in results.items()}
    kinds = _by_kind(right, questions)
    hard, easy, counts = _by_downsample(right, questions)
    pictures = [question.picture for question in questions]
    return {
        cell: Breakdown(
            kinds=kinds.get(cell, {}),
            hard=hard.get(cell),
            easy=easy.get(cell),
            hard_questions=counts.get(cell, 0),
            measures=summarize(result.fidelity, pictures) if result.fidelity else None,
        )
        for cell, result in results.items()
    }


def _by_kind(right: Mapping[Cell, NDArray[np.bool_]], questions: Sequence[Question]) -> dict[Cell, dict[str, Estimate]]:
    names = sorted({question.kind for question in questions if question.kind is not None})
    if len(names) < 2:
        return {}
    found: dict[Cell, dict[str, Estimate]] = {cell: {} for cell in right}
    for name in names:
        chosen = np.array([question.kind == name for question in questions])
        for cell, one in _shares(right, chosen, questions).items():
            found[cell][name] = one
    return found


def _by_downsample(
    right: Mapping[Cell, NDArray[np.bool_]], questions: Sequence[Question]
) -> tuple[dict[Cell, Estimate], dict[Cell, Estimate], dict[Cell, int]]:
    """Return shares of what down-sampling gets wrong, of the rest, and how many questions the former are.

    Reference: VTC-Bench, 2025, arXiv 2510.07143, whose group A are the questions that a smaller picture gets wrong.
    """
    hard: dict[Cell, Estimate] = {}
    easy: dict[Cell, Estimate] = {}
    counts: dict[Cell, int] = {}
    for reference, answers in right.items():
        if reference.method != DOWNSAMPLE:
            continue
        # The first of several variants of downsample counts.
        alike = {
            cell: one
            for cell, one in right.items()
            if (cell.ratio, cell.precision) == (reference.ratio, reference.precision) and cell not in counts
        }
        counts |= dict.fromkeys(alike, int((~answers).sum()))
        hard |= _shares(alike, ~answers, questions)
        easy |= _shares(alike, answers, questions)
    return hard, easy, counts


def _shares(
    right: Mapping[Cell, NDArray[np.bool_]], chosen: NDArray[np.bool_], questions: Sequence[Question]
) -> dict[Cell, Estimate]:
    if not right or not chosen.any():
        return {}
    matrix = np.array([one[chosen] for one in right.values()])
    pictures = [question.picture for question, wanted in zip(questions, chosen, strict=True) if wanted]
    draws, means = resample_means(matrix, pictures), matrix.mean(axis=1)
    return {cell: estimate(means[row], draws[:, row]) for row, cell in enumerate(right)}
