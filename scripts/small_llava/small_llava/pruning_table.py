"""Accuracy of a published directory on its held-out questions, unpruned and pruned, per kind.

The pruning here is only a yardstick for the task (does it tell a good selection from a bad one?);
it stands between the tower and the projector and keeps raster order.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from training.packing import HEAD, Decoder
from training.pruning_table import SELECTORS
from transformers import AutoProcessor, LlavaForConditionalGeneration

from small_llava.heldout import read_questions
from small_llava.packing import block_mask, hits, pack, per_kind, positions
from small_llava.questions import Question

_PART = 25
TOKENS = 230
"""Tokens for the questions of a scene; every question must fit."""


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


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracies in 0..1: whole answers, their first tokens, whole answers per kind."""

    whole: float
    first: float
    kinds: dict[str, float]


@torch.no_grad()
def look(directory: Path) -> tuple[LlavaForConditionalGeneration, list[Picture]]:
    """Load the directory in float32 and run its tower over the held-out pictures."""
    model = LlavaForConditionalGeneration.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32)
    model.train(False)
    processor = AutoProcessor.from_pretrained(directory)  # type: ignore[no-untyped-call]  # untyped upstream
    pictures = []
    for name, asked in read_questions(directory / "heldout", "heldout.jsonl").items():
        with Image.open(directory / "heldout" / name) as picture:
            pixels = processor.image_processor(picture.convert("RGB"), return_tensors="pt")["pixel_values"]
        out = model.model.vision_tower(pixels, output_hidden_states=True, output_attentions=True)
        features, attention = out.hidden_states[-2][0, 1:], out.attentions[-2][0].mean(0)
        pictures.append(Picture(features=features, attention=attention, asked=asked))
    return model, pictures


@torch.no_grad()
def score(
    model: LlavaForConditionalGeneration,
    pictures: list[Picture],
    *,
    selector: str = "uniform",
    ratio: float = 0.0,
    original: bool = True,
    seed: int = 0,
) -> Score:
    """Answer all questions.

    Args:
        model: the model in float32.
        pictures: the result of `look`.
        selector: key of `SELECTORS` (tiny-llava's).
        ratio: fraction of the visual tokens removed, 0..1.
        original: keep the position ids of the unpruned sequence.
        seed: of the random selector.
    """
    total = len(pictures[0].features)
    keep = total - round(ratio * total)
    decoder, rng = Decoder(model), np.random.default_rng(seed)
    whole, first, kinds = [], [], {}
    for start in range(0, len(pictures), _PART):
        part = pictures[start : start + _PART]
        batch = pack([item.asked for item in part], TOKENS)
        assert all(len(kept) == len(item.asked) for kept, item in zip(batch.kept, part, strict=True))
        kept = torch.stack([SELECTORS[selector](item.attention, keep, rng).sort().values for item in part])
        features = torch.stack([item.features[index] for item, index in zip(part, kept, strict=True)])
        places = positions(batch, total if original else keep)
        if original:
            places = torch.cat([places[:, :HEAD], HEAD + kept, places[:, HEAD + total :]], 1)
        logits = decoder(features, batch.ids, places, block_mask(batch.owners, HEAD + keep))
        good, began = hits(logits, batch)
        whole.append(good)
        first.append(began)
        for kind, right in per_kind(batch, good).items():
            kinds.setdefault(kind, []).extend(right)
    return Score(
        whole=torch.cat(whole).float().mean().item(),
        first=torch.cat(first).float().mean().item(),
        kinds={kind: float(np.mean(right)) for kind, right in sorted(kinds.items())},
    )
