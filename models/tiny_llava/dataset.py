"""The fixed held-out questions and the training scenes of the tiny LLaVA."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lmmprune.models.tiny_llava.digits import Split
from lmmprune.models.tiny_llava.questions import ask
from lmmprune.models.tiny_llava.scenes import scenes

HELDOUT_SCENES = 250
QUESTIONS_PER_SCENE = 8
HELDOUT_SEED = 7_000_001
CALIBRATION_SEED = 7_000_002
TUNING_SEED = 7_000_003


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question about one picture.

    Attributes:
        image_id: index of the scene in its split; examples of a scene share it.
        image: RGB picture, 96 x 96.
        question: the bare question.
        answer: the expected word.
        kind: the kind of question, for per-kind accuracies.
    """

    image_id: int
    image: Image.Image
    question: str
    answer: str
    kind: str


def _examples(split: Split, count: int, per_scene: int, *, seed: int) -> Iterator[Example]:
    for index, scene in enumerate(scenes(split, count, seed=seed)):
        image = scene.image
        rng = np.random.default_rng([seed, index, 1])
        for question in ask(rng, scene.digits, per_scene):
            yield Example(
                image_id=index,
                image=image,
                question=question.text,
                answer=question.answer,
                kind=question.kind,
            )


def heldout() -> list[Example]:
    """Return the fixed 2,000 questions about 250 scenes of never-trained handwriting."""
    return list(_examples("heldout", HELDOUT_SCENES, QUESTIONS_PER_SCENE, seed=HELDOUT_SEED))


def calibration(count: int = 32) -> list[Example]:
    """Return `count` training scenes, one question each, for calibrating quantizers."""
    return list(_examples("train", count, 1, seed=CALIBRATION_SEED))


def tuning(count: int) -> list[Example]:
    """Return questions about `count` training scenes, for choosing what held-out questions then judge."""
    return list(_examples("train", count, QUESTIONS_PER_SCENE, seed=TUNING_SEED))
