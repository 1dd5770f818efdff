"""Measure the accuracy of a bundle: exact match on questions with known answers, with a confidence interval."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.runtime.image_features import ImageFeatures
from lmmprune.compiler.runtime.runtime import Runtime

_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of right answers in 0..1 with its 95 % Wilson interval."""

    correct: int
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
    """What the model said to one question."""

    picture: str
    prompt: str
    answers: tuple[str, ...]
    kind: str | None
    predicted: str
    correct: bool


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The accuracy over all questions and per kind, every prediction, and the seconds it took."""

    overall: Accuracy
    kinds: dict[str, Accuracy]
    predictions: tuple[Prediction, ...]
    seconds: float

    def as_dict(self, *, predictions: bool = False) -> dict[str, Any]:
        """Return the result for JSON, on request with every prediction."""
        kinds = {kind: accuracy.as_dict() for kind, accuracy in self.kinds.items()}
        result = {**self.overall.as_dict(), "kinds": kinds, "seconds": self.seconds}
        if predictions:
            result["predictions"] = [dataclasses.asdict(prediction) for prediction in self.predictions]
        return result


def evaluate(
    runtime: Runtime,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 16,
    on_answer: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Ask every question, greedily; questions about one picture share its vision pass.

    An answer is right when it equals one of the expected ones, apart from case, surrounding white space and a final
    full stop.

    Args:
        runtime: A loaded bundle.
        questions: At least one; those of a picture need not be neighbours.
        max_new_tokens: Answers are cut there.
        on_answer: Called after every answer.

    Raises:
        InputError: A picture or a prompt can't be used.
    """
    start = time.perf_counter()
    predictions: list[Prediction | None] = [None] * len(questions)
    picture: str | None = None
    visual: ImageFeatures | None = None
    for index in sorted(range(len(questions)), key=lambda index: questions[index].picture):
        question = questions[index]
        if visual is None or question.picture != picture:
            picture, visual = question.picture, runtime.encode_image(question.load())
        said = runtime.answer(visual, question.prompt, max_new_tokens).text.strip()
        predictions[index] = Prediction(
            picture=question.picture,
            prompt=question.prompt,
            answers=question.answers,
            kind=question.kind,
            predicted=said,
            correct=any(normalized(said) == normalized(answer) for answer in question.answers),
        )
        on_answer()
    done = tuple(prediction for prediction in predictions if prediction is not None)
    kinds = sorted({prediction.kind for prediction in done if prediction.kind is not None})
    return Evaluation(
        overall=_accuracy(done),
        kinds={kind: _accuracy([prediction for prediction in done if prediction.kind == kind]) for kind in kinds},
        predictions=done,
        seconds=time.perf_counter() - start,
    )


def normalized(answer: str) -> str:
    """Return an answer in lower case without surrounding white space and without a final full stop."""
    return answer.strip().removesuffix(".").rstrip().casefold()


def _accuracy(predictions: Sequence[Prediction]) -> Accuracy:
    return Accuracy(correct=sum(prediction.correct for prediction in predictions), total=len(predictions))
