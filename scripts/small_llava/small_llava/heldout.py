"""The fixed held-out questions, and scenes for calibration, as files."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmmprune.models.tiny_llava.digits import Split
from small_llava.questions import Question, ask
from small_llava.scenes import Scene, scenes

SCENES = 250
QUESTIONS = 8
"""Questions per scene: 2,000 in all."""

HELDOUT_SEED = 7_100_001
CALIBRATION_SEED = 7_100_002
TUNING_SEED = 7_100_003
CALIBRATION_SCENES = 32


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One scene and the questions about it."""

    scene: Scene
    questions: list[Question]


def _draw(split: Split, count: int, per_scene: int, *, seed: int) -> Iterator[Asked]:
    index = 0
    while count:
        scene = next(scenes(split, 1, seed=seed, first=index))
        questions = ask(np.random.default_rng([seed, index, 1]), scene.things, per_scene)
        if len(questions) == per_scene:  # a few plain scenes give fewer
            yield Asked(scene=scene, questions=questions)
            count -= 1
        index += 1


def heldout(count: int = SCENES) -> list[Asked]:
    """Return the fixed 2,000 questions about 250 scenes of photographs, handwriting and font sizes never trained."""
    return list(_draw("heldout", count, QUESTIONS, seed=HELDOUT_SEED))


def calibration(count: int = CALIBRATION_SCENES) -> list[Asked]:
    """Return training scenes with a question each, for calibrating quantizers."""
    return list(_draw("train", count, 1, seed=CALIBRATION_SEED))


def tuning(count: int) -> list[Asked]:
    """Return training scenes with eight questions each, for choosing what held-out questions then judge."""
    return list(_draw("train", count, QUESTIONS, seed=TUNING_SEED))


def write_questions(directory: Path, index: str, asked: list[Asked]) -> None:
    """Write pictures and one JSON line per question (image, prompt, answer, kind) into a fresh directory."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    lines = []
    for number, item in enumerate(asked):
        name = f"scene_{number:03d}.jpg"
        # No chroma subsampling: it would smear the colours of letters one pixel wide.
        item.scene.image.save(directory / name, quality=93, subsampling=0, optimize=True)
        for question in item.questions:
            row = {"image": name, "prompt": question.text, "answer": question.answer, "kind": question.kind}
            lines.append(json.dumps(row))
    (directory / index).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_questions(directory: Path, index: str) -> dict[str, list[Question]]:
    """Read the questions back, by file name of their picture."""
    asked: dict[str, list[Question]] = {}
    for line in (directory / index).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        asked.setdefault(row["image"], []).append(Question(kind=row["kind"], text=row["prompt"], answer=row["answer"]))
    return asked
