"""ScienceQA: questions from school with two to five options; those with a picture.

Reference: Lu et al., Learn to Explain, 2022, arXiv 2209.09513; prompt and reading of the answer as in LLaVA-1.5, whose
    "SQA-IMG" this is.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.measure.figures import Figures, shares_by_kind
from lmmprune.compiler.measure.formats.folder import Folder, json_of, load, word
from lmmprune.compiler.measure.formats.format import LETTER, Format
from lmmprune.compiler.measure.formats.options import LETTERS, letter_said, with_options
from lmmprune.errors import InputError

_SPLIT = "test"
_MOST = 5  # options


def read(folder: Folder) -> list[Question]:
    """Return the questions of ``test`` that have a picture; the kind is the subject.

    The hint stands in front as ``Context: ...``.
    """
    path = folder.file("problems.json")
    splits, problems = json_of(folder.file("pid_splits.json"), dict), json_of(path, dict)
    chosen = splits.get(_SPLIT)
    if not isinstance(chosen, list):
        raise InputError(f"'pid_splits.json' in '{folder.path}' has no list '{_SPLIT}'")
    questions = []
    for name in chosen:
        row, where = problems.get(str(name)), f"question {name} of '{path}'"
        if not isinstance(row, dict):
            raise InputError(f"{where} isn't there, though 'pid_splits.json' lists it")
        if not row.get("image"):
            continue
        options, answer = row.get("choices"), row.get("answer")
        if not isinstance(options, list) or not 2 <= len(options) <= _MOST or {*map(type, options)} != {str}:
            raise InputError(f"{where} needs 'choices', a list of 2 to {_MOST} texts")
        if not isinstance(answer, int) or not 0 <= answer < len(options):
            raise InputError(f"{where} needs 'answer', the place of the right one among the choices")
        picture = folder.picture(f"{name}/{word(row, 'image', where)}", _SPLIT, f"images/{_SPLIT}")
        hint = row.get("hint") or ""
        asked = f"Context: {hint}\n{word(row, 'question', where)}" if hint else word(row, "question", where)
        questions.append(
            Question(
                picture=str(picture),
                load=load(picture),
                prompt=LETTER.format(question=with_options(asked, options)),
                answers=(LETTERS[answer],),
                kind=word(row, "subject", where),
                options=tuple(options),
            )
        )
    return questions


def judge(question: Question, said: str) -> float:
    """Return whether it names the right letter."""
    return float(letter_said(said, question.options) == question.answers[0])


def score(questions: Sequence[Question], said: Sequence[str], right: Sequence[float]) -> Figures:
    """Return the accuracy over all, and by subject."""
    return shares_by_kind(questions, right)


SCIENCEQA = Format(
    name="scienceqa",
    title="ScienceQA (questions with a picture)",
    layout="problems.json, pid_splits.json and test/NUMBER/image.png",
    reports="accuracy; by subject",
    reference="Lu et al., 2022, arXiv 2209.09513",
    template=LETTER,
    read=read,
    judge=judge,
    score=score,
)
