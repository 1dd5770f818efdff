"""TextVQA: questions whose answer is written in the picture, each answered by ten people.

Reference: Singh et al., Towards VQA Models That Can Read, 2019, arXiv 1904.08920; answers are brought into the form of
    the released evaluation of Pythia and M4C (Hu et al., 2019, arXiv 1911.06258), which LLaVA-1.5 uses.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.measure.figures import Figures, shares
from lmmprune.compiler.measure.formats.folder import Folder, json_of, load, word
from lmmprune.compiler.measure.formats.format import SHORT, Format
from lmmprune.compiler.measure.matching import agreement
from lmmprune.compiler.measure.vqa_text import vqa_normalized
from lmmprune.errors import InputError

_PEOPLE = 10


def read(folder: Folder) -> list[Question]:
    """Return the questions of the validation set; LLaVA-1.5's hint of the words that an OCR found is not given."""
    path = folder.file("TextVQA_0.5.1_val.json")
    rows = json_of(path, dict).get("data")
    if not isinstance(rows, list):
        raise InputError(f"'{path}' has no list 'data': give a folder with {folder.layout}")
    questions = []
    for number, row in enumerate(rows, 1):
        where = f"question {number} of '{path}'"
        picture = folder.picture(f"{word(row, 'image_id', where)}.jpg", "train_images", "train_val_images/train_images")
        answers = row.get("answers")
        people = isinstance(answers, list) and all(isinstance(answer, str) for answer in answers)
        if not people or len(answers) != _PEOPLE:
            raise InputError(f"{where} needs 'answers', a list of {_PEOPLE} texts")
        questions.append(
            Question(
                picture=str(picture),
                load=load(picture),
                prompt=SHORT.format(question=word(row, "question", where)),
                answers=tuple(answers),
            )
        )
    return questions


def normalized(answer: str) -> str:
    """Return an answer as VQA compares it; commas and question marks went before, and 's stands for itself."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return vqa_normalized(text.strip())


def judge(question: Question, said: str) -> float:
    """Return ``min(matches / 3, 1)``, each person's answer left out in turn, averaged."""
    return agreement(normalized(said), [normalized(answer) for answer in question.answers])


def score(questions: Sequence[Question], said: Sequence[str], right: Sequence[float]) -> Figures:
    """Return the mean over all questions."""
    return shares(questions, right)


TEXTVQA = Format(
    name="textvqa",
    title="TextVQA",
    layout="TextVQA_0.5.1_val.json and train_images/",
    reports="accuracy: min(people who said so / 3, 1), each of the ten left out in turn",
    reference="Singh et al., 2019, arXiv 1904.08920",
    template=SHORT,
    read=read,
    judge=judge,
    score=score,
)
