"""Accuracy of a published directory on the held-out questions, unpruned and pruned.

The reference pruning here is only a yardstick for the task (does it tell a good selection from a
bad one?); it stands between the tower and the projector and keeps raster order.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from lmmprune.models.tiny_llava.dataset import Example, heldout
from lmmprune.models.tiny_llava.questions import Question
from training.packing import BLOCK, HEAD, Batch, Decoder, answer_loss, block_mask, pack

Selector = Callable[[Tensor, int, np.random.Generator], Tensor]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What the tower says about one picture and what is asked about it; N patches.

    Attributes:
        features: hidden[-2] without CLS `[N, C]`.
        attention: head-mean probabilities of the layer producing hidden[-2] `[N + 1, N + 1]`.
        asked: the questions.
    """

    features: Tensor
    attention: Tensor
    asked: list[Question]


def _random(attention: Tensor, keep: int, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.permutation(len(attention) - 1)[:keep].copy())


def _uniform(attention: Tensor, keep: int, rng: np.random.Generator) -> Tensor:
    del rng
    return ((torch.arange(keep) + 0.5) * ((len(attention) - 1) / keep)).long()


def _cls(attention: Tensor, keep: int, rng: np.random.Generator) -> Tensor:
    del rng
    return torch.argsort(attention[0, 1:], descending=True, stable=True)[:keep]


def _received(attention: Tensor, keep: int, rng: np.random.Generator) -> Tensor:
    del rng
    received = (attention - attention.diag().diag()).sum(0)[1:]
    return torch.argsort(received, descending=True, stable=True)[:keep]


SELECTORS: dict[str, Selector] = {
    "random": _random,
    "uniform": _uniform,
    "cls": _cls,
    "received": _received,
}


@torch.no_grad()
def look(directory: Path) -> tuple[LlavaForConditionalGeneration, list[Picture]]:
    """Load the directory in float32 and run its tower over the held-out pictures."""
    model = LlavaForConditionalGeneration.from_pretrained(directory, attn_implementation="eager")
    processor = AutoProcessor.from_pretrained(directory)  # type: ignore[no-untyped-call]  # untyped upstream
    pictures = []
    for _, group in groupby(heldout(), key=lambda example: example.image_id):
        examples: list[Example] = list(group)
        pixels = processor.image_processor(examples[0].image, return_tensors="pt")["pixel_values"]
        out = model.model.vision_tower(pixels, output_hidden_states=True, output_attentions=True)
        asked = [Question(kind=example.kind, text=example.question, answer=example.answer) for example in examples]
        pictures.append(
            Picture(
                features=out.hidden_states[-2][0, 1:],
                attention=out.attentions[-2][0].mean(0),
                asked=asked,
            )
        )
    model.train(False)
    return model, pictures


def _batches(pictures: list[Picture], vocabulary: dict[str, int]) -> Iterator[tuple[list[Picture], Batch]]:
    for start in range(0, len(pictures), 25):
        part = pictures[start : start + 25]
        yield part, pack(vocabulary, [picture.asked for picture in part])


@torch.no_grad()
def hits(
    model: LlavaForConditionalGeneration,
    pictures: list[Picture],
    vocabulary: dict[str, int],
    *,
    selector: str = "uniform",
    ratio: float = 0.0,
    original_positions: bool = False,
    seed: int = 0,
) -> Tensor:
    """Return which held-out answers are exactly right, bool, one per question.

    Args:
        model: the model in float32.
        pictures: the result of `look`.
        vocabulary: word to token.
        selector: key of `SELECTORS`.
        ratio: fraction of the visual tokens removed, 0..1.
        original_positions: keep the position ids of the unpruned sequence.
        seed: of the random selector.
    """
    total = len(pictures[0].features)
    keep = total - round(ratio * total)
    turns = len(pictures[0].asked)
    decoder, mask = Decoder(model), block_mask(HEAD + keep, turns)
    rng, right = np.random.default_rng(seed), []
    for part, batch in _batches(pictures, vocabulary):
        kept = torch.stack([SELECTORS[selector](item.attention, keep, rng).sort().values for item in part])
        features = torch.stack([item.features[index] for item, index in zip(part, kept, strict=True)])
        visual = kept if original_positions else torch.arange(keep).expand(len(part), -1)
        end = HEAD + (total if original_positions else keep)
        block = (end + torch.arange(BLOCK)).repeat(turns).expand(len(part), -1)
        head = torch.arange(HEAD).expand(len(part), -1)
        positions = torch.cat([head, HEAD + visual, block], 1)
        right.append(answer_loss(decoder(features, batch.ids, positions, mask), batch)[1])
    return torch.cat(right)


def per_kind(pictures: list[Picture], right: Tensor) -> dict[str, float]:
    """Return the accuracy in 0..1 of each kind of question."""
    groups: dict[str, list[bool]] = defaultdict(list)
    asked = (question for picture in pictures for question in picture.asked)
    for question, good in zip(asked, right.tolist(), strict=True):
        groups[question.kind].append(good)
    return {kind: float(np.mean(good)) for kind, good in sorted(groups.items())}
