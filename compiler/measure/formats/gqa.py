"""GQA: questions that take several steps, about relations and attributes, made from scene graphs.

Reference: Hudson and Manning, GQA, 2019, arXiv 1902.09506; an answer is right when it is the same word, apart from case
    and a final full stop, as LLaVA-1.5 hands it to the released evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.measure.figures import Figures, shares
from lmmprune.compiler.measure.formats.folder import Folder, json_of, load, word
from lmmprune.compiler.measure.formats.format import SHORT, Format
from lmmprune.compiler.measure.matching import exact

_OPEN = "query"
"""The structural type whose answers are open; those of the others are yes, no, or one of two."""


def read(folder: Folder) -> list[Question]:
    """Return the balanced questions of ``testdev``; the kind is the structural type."""
    path = folder.file("testdev_balanced_questions.json", "questions1.2", "questions")
    questions = []
    for name, row in json_of(path, dict).items():
        where = f"question {name} of '{path}'"
        if isinstance(row, dict) and row.get("isBalanced") is False:
            continue  # the released evaluation counts balanced ones only
        picture = folder.picture(f"{word(row, 'imageId', where)}.jpg", "images")
        questions.append(
            Question(
                picture=str(picture),
                load=load(picture),
                prompt=SHORT.format(question=word(row, "question", where)),
                answers=(word(row, "answer", where),),
                kind=word(row.get("types"), "structural", f"'types' of {where}"),
            )
        )
    return questions


def judge(question: Question, said: str) -> float:
    """Return whether it is the answer."""
    return float(exact(said, question.answers))


def score(questions: Sequence[Question], said: Sequence[str], right: Sequence[float]) -> Figures:
    """Return the accuracy over all, over binary and over open questions."""
    opened = [question.kind == _OPEN for question in questions]
    return shares(questions, right, {"binary": [not one for one in opened], "open": opened})


GQA = Format(
    name="gqa",
    title="GQA",
    layout="testdev_balanced_questions.json and images/",
    reports="accuracy; binary, open",
    reference="Hudson and Manning, 2019, arXiv 1902.09506",
    template=SHORT,
    read=read,
    judge=judge,
    score=score,
)
