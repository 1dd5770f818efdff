"""Measure the accuracy of a bundle on questions with known answers: whole answers and first words, with intervals."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmmprune.compiler.data.check_questions import check_questions
from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.measure.figures import Figures
from lmmprune.compiler.measure.formats.format import Format
from lmmprune.compiler.measure.matching import MATCHES, first_word
from lmmprune.compiler.measure.statistics import Estimate, estimate, resample_means
from lmmprune.compiler.runtime.ask_all import ask_all
from lmmprune.compiler.runtime.image_features import ImageFeatures
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.errors import InputError, suggestion

NEW_TOKENS = 16
"""Longest answer, where no format says otherwise."""

_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of right answers in 0..1 with its 95 % Wilson interval; where answers are partly right, it is too wide."""

    correct: float
    total: int

    @property
    def value(self) -> float:
        """The share itself."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the interval.

        Reference: E. B. Wilson, 1927, Probable inference, the law of succession, and statistical inference.
        """
        share, spread = self.value, _Z95**2 / self.total
        centre = (share + spread / 2) / (1 + spread)
        half = _Z95 * math.sqrt(share * (1 - share) / self.total + spread / self.total / 4) / (1 + spread)
        return max(0.0, centre - half), min(1.0, centre + half)

    def as_dict(self) -> dict[str, Any]:
        """Return counts, share and interval for JSON."""
        return {**dataclasses.asdict(self), "accuracy": self.value, "interval_95": list(self.interval)}


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model said to one question.

    Attributes:
        correct: How right the whole answer is, 0..1.
        first_word: Whether its first word is.
        sizes: What its pictures took of several sizes, as ``Stats.sizes``.
        tiles: The grids that its pictures were cut into, as ``Stats.tiles``.
    """

    picture: str
    prompt: str
    answers: tuple[str, ...]
    kind: str | None
    predicted: str
    correct: float
    first_word: bool
    sizes: tuple[str, ...] = ()
    tiles: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The accuracy over all questions and per kind, every prediction, and the seconds it took.

    Attributes:
        overall: By the whole answer.
        first_word: By its first word.
        kinds: Kind of question -> accuracy by the whole answer.
        kinds_first_word: Kind of question -> accuracy by the first word.
        predictions: One per question, in order.
        seconds: For all of them.
        figures: What the data set's own paper reports, where the questions are of a public format.
    """

    overall: Accuracy
    first_word: Accuracy
    kinds: dict[str, Accuracy]
    kinds_first_word: dict[str, Accuracy]
    predictions: tuple[Prediction, ...]
    seconds: float
    figures: Figures | None = None

    def difference(self, base: Evaluation) -> Estimate:
        """Return this accuracy less another one's on the same questions, paired, pictures drawn again.

        Raises:
            InputError: Other questions were asked.
        """
        asked = self._asked_same(base)
        right = np.array([[one.correct for one in side.predictions] for side in (self, base)], np.float64)
        draws = resample_means(right, asked)
        return estimate(self.overall.value - base.overall.value, draws[:, 0] - draws[:, 1])

    def differences(self, base: Evaluation) -> dict[str, Estimate]:
        """Return every figure less another evaluation's; none where there are no figures.

        Raises:
            InputError: Other questions were asked, or not in the same format.
        """
        self._asked_same(base)
        if self.figures is None or base.figures is None:
            return {}
        return self.figures.differences(base.figures)

    def _asked_same(self, base: Evaluation) -> list[str]:
        """Return the picture of every question; refuse an evaluation on others."""
        asked = [[(one.picture, one.prompt) for one in side.predictions] for side in (self, base)]
        if asked[0] != asked[1] or (self.figures is None) != (base.figures is None):
            raise InputError("the two were asked different questions: evaluate both on the same data")
        return [picture for picture, _ in asked[0]]

    def as_dict(self, *, predictions: bool = False) -> dict[str, Any]:
        """Return the result for JSON, on request with every prediction."""
        kinds = {
            kind: {**accuracy.as_dict(), "first_word": self.kinds_first_word[kind].as_dict()}
            for kind, accuracy in self.kinds.items()
        }
        first = self.first_word.as_dict()
        result = {**self.overall.as_dict(), "first_word": first, "kinds": kinds, "seconds": self.seconds}
        if self.figures is not None:
            found = self.figures.estimates()
            result["figures"] = {
                name: {**dataclasses.asdict(found[name]), "most": formula.most}
                for name, formula in self.figures.formulas.items()
            }
        if predictions:
            result["predictions"] = [dataclasses.asdict(prediction) for prediction in self.predictions]
        for name in ("sizes", "tiles"):
            if taken := Counter(one for prediction in self.predictions for one in getattr(prediction, name)):
                result[name] = dict(taken)
        return result


def evaluate(
    runtime: Runtime,
    questions: Sequence[Question],
    *,
    max_new_tokens: int | None = None,
    match: str = "exact",
    form: Format | None = None,
    on_answer: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Ask every question, greedily; questions about one picture share its vision pass.

    Its first word is right when it equals the first word of one of the expected ones (``first_word``): a
    model that goes on where it should stop has the word and misses the answer.

    Args:
        runtime: A loaded bundle.
        questions: At least one; those of a picture need not be neighbours.
        max_new_tokens: Answers are cut there; None: ``NEW_TOKENS``, or the format's own.
        match: When an answer is right, a key of ``MATCHES``.
        form: The public format that the questions are of, which says instead what is right.
        on_answer: Called after every answer.

    Raises:
        InputError: A picture or a prompt can't be used, or there is no such match, or one beside a format.
    """
    if match not in MATCHES:
        raise InputError(f"no match '{match}'{suggestion(match, MATCHES)}")
    if form is not None and match != "exact":
        raise InputError(
            f"the match '{match}' is given for {form.title}, which says itself what is right: leave it out"
        )
    check_questions(runtime.bundle.manifest, questions)
    longest = max_new_tokens or (form.max_new_tokens if form else NEW_TOKENS)
    start = time.perf_counter()
    predictions: list[Prediction | None] = [None] * len(questions)
    order = sorted(range(len(questions)), key=lambda index: questions[index].picture)
    asked = ask_all(runtime, [questions[index] for index in order], longest, functools.partial(_see, runtime))
    for index, (question, answer) in zip(order, asked, strict=True):
        said = answer.text.strip()
        predictions[index] = Prediction(
            picture=question.picture,
            prompt=question.prompt,
            answers=question.answers,
            kind=question.kind,
            predicted=said,
            correct=form.judge(question, said) if form else MATCHES[match](said, question.answers),
            first_word=any(first_word(said) == first_word(right) for right in question.answers),
            sizes=answer.stats.sizes,
            tiles=answer.stats.tiles,
        )
        on_answer()
    done = tuple(prediction for prediction in predictions if prediction is not None)
    names = sorted({prediction.kind for prediction in done if prediction.kind is not None})
    kinds = {name: [prediction for prediction in done if prediction.kind == name] for name in names}
    return Evaluation(
        overall=_whole(done),
        first_word=_first(done),
        kinds={kind: _whole(asked) for kind, asked in kinds.items()},
        kinds_first_word={kind: _first(asked) for kind, asked in kinds.items()},
        predictions=done,
        seconds=time.perf_counter() - start,
        figures=form.score(questions, [one.predicted for one in done], [one.correct for one in done]) if form else None,
    )


def _see(runtime: Runtime, question: Question) -> list[ImageFeatures]:
    if question.video is not None:
        return runtime.encode_video(question.video)
    return runtime.encode_images(question.pictures())


def _whole(predictions: Sequence[Prediction]) -> Accuracy:
    return Accuracy(correct=sum(prediction.correct for prediction in predictions), total=len(predictions))


def _first(predictions: Sequence[Prediction]) -> Accuracy:
    return Accuracy(correct=sum(prediction.first_word for prediction in predictions), total=len(predictions))
