"""MMBench: abilities in many small categories, up to four options, pictures inside of the file.

Reference: Liu et al., MMBench: Is Your Multi-modal Model an All-around Player?, 2023, arXiv 2307.06281.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.measure.figures import Figures, share, shares
from lmmprune.compiler.measure.formats.folder import Folder
from lmmprune.compiler.measure.formats.format import LETTER, Format
from lmmprune.compiler.measure.formats.options import LETTERS, letter_meant, with_options
from lmmprune.compiler.runtime.open_picture import decode_image
from lmmprune.errors import InputError

_CIRCLE = 1_000_000  # a question's index is this one's rest: its copies with shifted options add a multiple
_REFERENCE = 64  # letters: a shorter "picture" is the index of the row that has it
_DIGITS = 12  # of an index
_FIELD = 2**28  # letters of a field
_OPTIONS = "ABCD"
_NOTHING = ("", "nan", "none")


def read(folder: Folder) -> list[Question]:
    """Return the questions of the folder's only TSV file; the kind is the category."""
    found = folder.files("*.tsv")
    if len(found) > 1:
        names = ", ".join(f"'{path.name}'" for path in found)
        raise InputError(f"'{folder.path}' holds {len(found)} TSV files ({names}): give a folder with one of them")
    rows = dict(_rows(found[0]))
    return [_question(found[0], index, row, rows) for index, row in rows.items()]


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    before, seen = csv.field_size_limit(_FIELD), set[int]()
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for number, row in enumerate(csv.DictReader(stream, delimiter="\t"), 1):
                index = row.get("index") or ""
                if not index.isdecimal() or len(index) > _DIGITS or int(index) in seen:
                    raise InputError(f"row {number} of '{path}' has the index '{index[:20]}': expected another number")
                seen.add(int(index))
                yield int(index), {name: value or "" for name, value in row.items() if isinstance(value, str | None)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{path}' can't be read as a table with tabs ({error})") from error
    finally:
        csv.field_size_limit(before)


def _question(path: Path, index: int, row: Mapping[str, str], rows: Mapping[int, Mapping[str, str]]) -> Question:
    where = f"question {index} of '{path}'"
    options = []
    for letter in _OPTIONS:
        if row.get(letter, "").strip().lower() in _NOTHING:
            break
        options.append(row[letter])
    answer = row.get("answer", "")
    if len(options) < 2 or not row.get("question"):
        raise InputError(f"{where} needs 'question' and the options 'A' and 'B' at least")
    if answer not in LETTERS[: len(options)] or not answer:
        raise InputError(f"{where} has the answer '{answer}': expected a letter of its options; take the set 'dev'")
    packed = row.get("image", "")
    if packed.isdecimal() and len(packed) <= _REFERENCE:
        packed = rows.get(int(packed), {}).get("image", "")
    if not packed:
        raise InputError(f"{where} has no picture: expected base64 in 'image', or the index of a row that has it")
    hint = row.get("hint", "")
    asked = row["question"] if hint.strip().lower() in _NOTHING else f"{hint}\n{row['question']}"
    return Question(
        picture=hashlib.sha256(packed.encode()).hexdigest(),
        load=_load(packed, where),
        prompt=LETTER.format(question=with_options(asked, options)),
        answers=(answer,),
        kind=row.get("category") or None,
        options=tuple(options),
        group=str(index % _CIRCLE),
    )


def _load(packed: str, where: str) -> Callable[[], Image.Image]:
    def load() -> Image.Image:
        try:
            data = base64.b64decode(packed, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"the picture of {where} isn't base64 ({error})") from error
        return decode_image(data, f"the picture of {where}")

    return load


def judge(question: Question, said: str) -> float:
    """Return whether it means the right letter."""
    return float(letter_meant(said, question.options) == question.answers[0])


def score(questions: Sequence[Question], said: Sequence[str], right: Sequence[float]) -> Figures:
    """Return the accuracy; where options come shifted, too, that of ``CircularEval`` and of the first of each.

    Circular: a question is right only if it is right however its options are shifted (section 4.1).
    """
    groups: dict[str, list[int]] = {}
    for row, question in enumerate(questions):
        groups.setdefault(str(question.group), []).append(row)
    if len(groups) == len(questions):
        return shares(questions, right)
    counts = np.zeros((len(questions), 3))
    for rows in groups.values():
        counts[rows[0]] = 1, right[rows[0]], all(right[row] for row in rows)
    return Figures(
        counts=counts,
        formulas={"circular": share(2, 0), "vanilla": share(1, 0)},
        pictures=tuple(question.picture for question in questions),
    )


MMBENCH = Format(
    name="mmbench",
    title="MMBench",
    layout="one file such as mmbench_dev_20230712.tsv",
    reports="accuracy; CircularEval where options come shifted, too",
    reference="Liu et al., 2023, arXiv 2307.06281",
    template=LETTER,
    read=read,
    judge=judge,
    score=score,
)
