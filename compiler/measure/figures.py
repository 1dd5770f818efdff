"""Figures that a data set publishes, as formulas over counts, so that they have intervals and paired differences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.measure.statistics import Estimate, Floats, estimate, resample_means


@dataclass(frozen=True, kw_only=True)
class Formula:
    """One figure.

    Attributes:
        of: Means (or sums) of the counts, ``[...,k]`` -> its value ``[...]``; the same for counts of any scale.
        most: The largest value that there can be; 1 for shares.
    """

    of: Callable[[Floats], Floats]
    most: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Figures:
    """The figures of one evaluation.

    Attributes:
        counts: float64 ``[questions,k]``: what each question adds.
        formulas: Name -> figure; the first one is what the set is known by.
        pictures: For every question, its picture: pictures are drawn again with all that was asked about them.
        strata: For every question, what its picture belongs to (``resample_means``); None: all belong together.
    """

    counts: Floats
    formulas: Mapping[str, Formula]
    pictures: tuple[str, ...]
    strata: tuple[str, ...] | None = None

    @functools.cached_property
    def _draws(self) -> Floats:
        return resample_means(self.counts.T, self.pictures, self.strata)

    def estimates(self) -> dict[str, Estimate]:
        """Return every figure with its 95 % interval."""
        sums = self.counts.sum(axis=0)
        return {
            name: estimate(float(formula.of(sums)), formula.of(self._draws)) for name, formula in self.formulas.items()
        }

    def differences(self, base: Figures) -> dict[str, Estimate]:
        """Return every figure less another evaluation's on the same questions, paired: both see the same draws."""
        found = {}
        for name, formula in self.formulas.items():
            value = formula.of(self.counts.sum(axis=0)) - formula.of(base.counts.sum(axis=0))
            found[name] = estimate(float(value), formula.of(self._draws) - formula.of(base._draws))
        return found


def ratio(above: Floats, below: Floats) -> Floats:
    """Return a share; 0 where there is nothing to share, as scikit-learn's ``zero_division=0``."""
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    found: Floats = np.divide(above, below, out=np.zeros_like(above), where=below != 0)
    return found


def share(right: int, asked: int) -> Formula:
    """Return the figure ``counts[right] / counts[asked]``."""
    return Formula(of=lambda counts: ratio(counts[..., right], counts[..., asked]))


def shares(
    questions: Sequence[Question], right: Sequence[float], parts: Mapping[str, Sequence[bool]] | None = None
) -> Figures:
    """Return the share of right answers as ``accuracy``, and the same of parts of the questions.

    Args:
        questions: What was asked.
        right: How right each answer is, 0..1.
        parts: Name -> which questions belong to it; those without any are left out.
    """
    score, formulas = np.asarray(right, np.float64), {}
    columns: list[Floats] = []
    for name, chosen in {"accuracy": [True] * len(questions), **(parts or {})}.items():
        asked = np.asarray(chosen, np.float64)
        if asked.any():
            formulas[name] = share(len(columns) + 1, len(columns))
            columns += [asked, score * asked]
    return Figures(
        counts=np.stack(columns, axis=1), formulas=formulas, pictures=tuple(one.picture for one in questions)
    )


def shares_by_kind(questions: Sequence[Question], right: Sequence[float]) -> Figures:
    """Return the share of right answers over all, and of each kind of question."""
    kinds = sorted({str(question.kind) for question in questions})
    return shares(questions, right, {kind: [question.kind == kind for question in questions] for kind in kinds})


def kinds_of_pictures(questions: Sequence[Question]) -> tuple[str, ...]:
    """Return for every question all kinds that its picture is asked about, as one word: strata of ``Figures``."""
    kinds: dict[str, set[str]] = {}
    for question in questions:
        kinds.setdefault(question.picture, set()).add(question.kind or "")
    return tuple("\n".join(sorted(kinds[question.picture])) for question in questions)
