"""RefCOCO, RefCOCO+ and RefCOCOg: where is what a phrase describes? Boxes, right from an overlap of one half on.

Reference: Yu et al., Modeling Context in Referring Expressions, 2016, arXiv 1608.00272; Mao et al., 2016, arXiv
    1511.02283. The JSON Lines files are those that came with Qwen-VL (Bai et al., 2023, arXiv 2308.12966).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.measure.figures import Figures, shares_by_kind
from lmmprune.compiler.measure.formats.folder import Folder, json_lines, load, word
from lmmprune.compiler.measure.formats.format import Format
from lmmprune.errors import InputError

TEMPLATE = "Please provide the bounding box coordinate of the region this sentence describes: {question}"
"""Reference: the wording of LLaVA-1.5's training data (Liu et al., 2023, arXiv 2310.03744)."""

LEAST_OVERLAP = 0.5
_THOUSANDTHS = 1000
_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"
_BOX = re.compile(rf"{_NUMBER}\s*,\s*{_NUMBER}\s*[),;\]( \[]+\s*{_NUMBER}\s*,\s*{_NUMBER}")

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def read(folder: Folder) -> list[Question]:
    """Return the phrases of all ``refcoco*.jsonl``; the kind is the file's name.

    A line has ``image``, ``sent``, ``bbox`` (left, top, right, bottom in pixels), ``width`` and ``height``. The answers
    are the box as models give it: in fractions of the padded square, and in thousandths of the picture (``judge``).
    """
    questions = []
    for path in folder.files("refcoco*.jsonl"):
        for where, row in json_lines(path):
            picture = folder.picture(word(row, "image", where), "train2014", "images")
            box, width, height = _numbers(row, where)
            questions.append(
                Question(
                    picture=str(picture),
                    load=load(picture),
                    prompt=TEMPLATE.format(question=word(row, "sent", where)),
                    answers=(_text(padded(box, width, height)), _text(thousandths(box, width, height))),
                    kind=path.stem,
                )
            )
    return questions


def _numbers(row: Mapping[str, Any], where: str) -> tuple[Box, float, float]:
    box = row.get("bbox")
    numbers: list[Any] = [*box, row.get("width"), row.get("height")] if isinstance(box, list) else []
    good = len(numbers) == 6 and all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
    if not good or min(numbers[4:]) <= 0 or not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
        raise InputError(f"{where} needs 'bbox' (left, top, right, bottom in pixels), 'width' and 'height'")
    left, top, right, bottom, width, height = map(float, numbers)
    return (left, top, right, bottom), width, height


def padded(box: Box, width: float, height: float) -> Box:
    """Return a box in fractions of the square that a picture is padded to, itself in the middle, as in LLaVA-1.5."""
    side = max(width, height)
    across, down = (side - width) / 2, (side - height) / 2
    left, top, right, bottom = box
    return (left + across) / side, (top + down) / side, (right + across) / side, (bottom + down) / side


def thousandths(box: Box, width: float, height: float) -> Box:
    """Return a box in thousandths of the picture's width and height, as in Qwen-VL and InternVL."""
    left, top, right, bottom = box
    across, down = _THOUSANDTHS / width, _THOUSANDTHS / height
    return left * across, top * down, right * across, bottom * down


def _text(box: Box) -> str:
    return f"[{', '.join(f'{number:.6f}' for number in box)}]"


def find_box(said: str) -> Box | None:
    """Return the first four numbers that stand together as a box; None: there are none."""
    found = _BOX.search(said)
    return None if found is None else (float(found[1]), float(found[2]), float(found[3]), float(found[4]))


def overlap(one: Box, other: Box) -> float:
    """Return the area of the intersection over that of the union, 0..1; 0 where a box is turned inside out."""
    across = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    down = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (one, other)]
    union = sum(areas) - across * down
    return across * down / union if union > 0 else 0.0


def judge(question: Question, said: str) -> float:
    """Return whether the boxes overlap by a half at least.

    Numbers up to 1 are read as fractions of the padded square, larger ones as thousandths of the picture [ours: which
    of the two a model was trained on shows in its answer].
    """
    box = find_box(said)
    if box is None:
        return 0.0
    truth = find_box(question.answers[0 if max(box) <= 1 else 1])
    assert truth is not None  # ``read`` wrote it
    return float(overlap(box, truth) >= LEAST_OVERLAP)


def score(questions: Sequence[Question], said: Sequence[str], right: Sequence[float]) -> Figures:
    """Return the share of right boxes over all, and of each file."""
    return shares_by_kind(questions, right)


REFCOCO = Format(
    name="refcoco",
    title="RefCOCO, RefCOCO+, RefCOCOg",
    layout="files such as refcoco_val.jsonl, and COCO's train2014/",
    reports="boxes that overlap by 0.5 (IoU); by file",
    reference="Yu et al., 2016, arXiv 1608.00272",
    template=TEMPLATE,
    read=read,
    judge=judge,
    score=score,
    max_new_tokens=64,
)
