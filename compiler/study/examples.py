"""Questions whose answers pruning changed, with what was kept of the picture: a handful, for people to look at."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.runtime.show_kept import show_kept
from lmmprune.compiler.study.findings import Findings, Row
from lmmprune.compiler.study.folder import Folder
from lmmprune.compiler.study.grid import UNPRUNED

MOST = 6
# Pixels of the longer side: a handful of drawings stays below one MiB.
_SIDE = 480
_COLOURS = 128


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question that the unpruned model and a cell answer differently.

    Attributes:
        said: By the cell.
        base_said: By the unpruned model.
        answers: Right ones; none where nobody knows.
        drawing: PNG of the patches that stay; None where the bundle isn't there any more.
    """

    question: str
    kind: str | None
    answers: tuple[str, ...]
    base_said: str
    said: str
    drawing: bytes | None


def changed_questions(findings: Findings, row: Row, questions: Sequence[Question]) -> list[int]:
    """Return the questions that pruning did worst on, one for each picture, the worst first.

    Where right answers are known: those that the unpruned model answers right and the cell wrong, and of these first
    what most of the other float cells at this ratio answer right. Where nobody knows: those whose answers differ
    soonest, then by divergence.
    """
    base = findings.row(UNPRUNED).result
    own = row.result
    if own.fidelity:
        order = sorted(range(len(questions)), key=lambda i: (own.fidelity[i].prefix, -own.fidelity[i].kl))
        found = [i for i in order if not own.correct[i]]
    else:
        rivals = [
            other.result.correct
            for other in findings.measured
            if (other.cell.ratio, other.cell.quantized) == (row.cell.ratio, False) and other is not row
        ]
        found = [i for i in range(len(questions)) if base.correct[i] and not own.correct[i]]
        found.sort(key=lambda i: -sum(rival[i] for rival in rivals))
    first: dict[str, int] = {}
    for index in found:
        first.setdefault(questions[index].picture, index)
    return list(first.values())[:MOST]


def collect_examples(findings: Findings, row: Row, questions: Sequence[Question], folder: Folder) -> list[Example]:
    """Return the examples of one cell, drawn where its bundle is still there.

    Raises:
        LmmpruneError: A picture or the bundle can't be read.
    """
    chosen = changed_questions(findings, row, questions)
    path = folder.bundle(row.cell)
    drawings: list[bytes | None] = [None] * len(chosen)
    if chosen and (path / "manifest.json").is_file():
        runtime = Runtime(Bundle.open(path), threads=1)
        drawings = [_draw(runtime, questions[index]) for index in chosen]
        runtime.close()
    base = findings.row(UNPRUNED).result
    return [
        Example(
            question=questions[index].prompt,
            kind=questions[index].kind,
            answers=questions[index].answers,
            base_said=base.said[index],
            said=row.result.said[index],
            drawing=drawing,
        )
        for index, drawing in zip(chosen, drawings, strict=True)
    ]


def _draw(runtime: Runtime, question: Question) -> bytes:
    image = show_kept(runtime, question.load(), prompt=question.prompt).image
    image.thumbnail((_SIDE, _SIDE))
    packed = io.BytesIO()
    image.quantize(_COLOURS).save(packed, "PNG", optimize=True)
    return packed.getvalue()
