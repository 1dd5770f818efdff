"""The public data sets that can be read, by name."""

from __future__ import annotations

from pathlib import Path

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.measure.formats.folder import Folder
from lmmprune.compiler.measure.formats.format import Format
from lmmprune.compiler.measure.formats.gqa import GQA
from lmmprune.compiler.measure.formats.mmbench import MMBENCH
from lmmprune.compiler.measure.formats.mme import MME
from lmmprune.compiler.measure.formats.pope import POPE
from lmmprune.compiler.measure.formats.refcoco import REFCOCO
from lmmprune.compiler.measure.formats.scienceqa import SCIENCEQA
from lmmprune.compiler.measure.formats.textvqa import TEXTVQA
from lmmprune.compiler.runtime.check_text import check_text
from lmmprune.errors import InputError, suggestion

FORMATS = {one.name: one for one in (POPE, GQA, MME, TEXTVQA, SCIENCEQA, MMBENCH, REFCOCO)}


def get_format(name: str) -> Format:
    """Return a format by name.

    Raises:
        InputError: There is no such.
    """
    if name not in FORMATS:
        raise InputError(f"no format '{name}'{suggestion(name, FORMATS)}")
    return FORMATS[name]


def read_format(form: Format, path: Path, pictures: Path | None = None, limit: int | None = None) -> list[Question]:
    """Return the questions of a folder.

    Args:
        form: What it is.
        path: The folder.
        pictures: Where its pictures are; None: where the set has them.
        limit: The first so many, and those that count only together with the last of them.

    Raises:
        InputError: The folder has another layout, or a picture that would be asked about is missing.
    """
    folder = Folder(path=path, layout=form.layout, pictures=pictures)
    questions = _first(form.read(folder), limit)
    if not questions:
        raise InputError(f"'{path}' holds no questions of {form.title}: give a folder with {form.layout}")
    folder.check(questions)
    for number, question in enumerate(questions, 1):
        check_text(question.prompt, f"the prompt of question {number}")
    return questions


def _first(questions: list[Question], limit: int | None) -> list[Question]:
    if limit is None:
        return questions
    groups = {question.group for question in questions[:limit]} - {None}
    later = [question for question in questions[limit:] if question.group in groups]
    return questions[:limit] + later
