"""Ask questions whose answers nobody knows: how near a cell stays to what the unpruned float model says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from lmmprune.compiler.compare.fidelity import Fidelity, measure_fidelity
from lmmprune.compiler.compare.kept_answers import pack_answers, unpack_answers
from lmmprune.compiler.compare.record import Recorded, record_answer, score_answer
from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.runtime.image_features import ImageFeatures
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.study.write_file import write_bytes
from lmmprune.errors import BundleError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Said:
    """One answer, and how near it is to that of the unpruned model."""

    text: str
    fidelity: Fidelity


def record_base(runtime: Runtime, questions: Sequence[Question], limit: int, file: Path) -> list[Said]:
    """Let the unpruned model answer, and keep what it chose from: all other cells are measured by that.

    Args:
        runtime: The unpruned float model.
        questions: In the data's order.
        limit: Tokens at most.
        file: Where the answers are kept.

    Raises:
        InputError: A picture or a prompt can't be used, or the file can't be written.
    """
    answers = _in_order(
        runtime, questions, lambda index, visual: record_answer(runtime, visual, questions[index].prompt, limit)
    )
    write_bytes(file, pack_answers({str(index): answer for index, answer in enumerate(answers)}))
    return [Said(text=_text(runtime, answer), fidelity=_of_itself(answer)) for answer in answers]


def measure_cell(runtime: Runtime, questions: Sequence[Question], limit: int, file: Path) -> list[Said]:
    """Lead a cell through the answers of the unpruned model, and let it give its own where it differs.

    Args:
        runtime: The cell.
        questions: In the data's order.
        limit: Tokens at most.
        file: What ``record_base`` wrote.

    Raises:
        InputError: A picture or a prompt can't be used.
        BundleError: The file isn't what was written.
    """
    try:
        kept = unpack_answers(file)
        base = [kept[str(index)] for index in range(len(questions))]
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(
            f"'{file}' doesn't hold the answers of the unpruned model ({error}): delete its folder, to make it again"
        ) from error

    def judge(index: int, visual: ImageFeatures) -> Said:
        prompt, answer = questions[index].prompt, base[index]
        found = measure_fidelity(answer, score_answer(runtime, visual, prompt, answer.tokens.tolist()))
        own = answer if found.exact else record_answer(runtime, visual, prompt, limit)
        return Said(text=_text(runtime, own), fidelity=found)

    return _in_order(runtime, questions, judge)


def _in_order(runtime: Runtime, questions: Sequence[Question], ask: Callable[[int, ImageFeatures], T]) -> list[T]:
    """Ask about picture by picture; return what came of it in the data's order."""
    found: dict[int, T] = {}
    for index, visual in _by_picture(runtime, questions):
        found[index] = ask(index, visual)
    return [found[index] for index in range(len(questions))]


def _by_picture(runtime: Runtime, questions: Sequence[Question]) -> Iterator[tuple[int, ImageFeatures]]:
    seen: tuple[str, ImageFeatures] | None = None
    for index in sorted(range(len(questions)), key=lambda index: questions[index].picture):
        question = questions[index]
        if seen is None or seen[0] != question.picture:
            seen = question.picture, runtime.encode_image(question.load())
        yield index, seen[1]


def _text(runtime: Runtime, answer: Recorded) -> str:
    return runtime.prompter.decode(answer.tokens.tolist()).strip()


def _of_itself(answer: Recorded) -> Fidelity:
    likelihood = float(np.sum(answer.log_likelihoods))
    return Fidelity(
        first=True,
        first_kl=0.0,
        kl=0.0,
        steps=len(answer.tokens),
        matched=len(answer.tokens),
        log_likelihood=likelihood,
        base_log_likelihood=likelihood,
    )
