"""Projector and decoder learn to answer; the tower is frozen as in LLaVA-1.5, its features are stored."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from training.loop import Metrics
from training.packing import HEAD
from training.vision import to_input

from small_llava.packing import answer_loss, block_mask, hits, pack, per_kind, positions
from small_llava.pools import Pool
from small_llava.questions import ask, describe
from small_llava.scenes import GRID, Thing
from small_llava.windows import draw_uncut

TOKENS = 160
"""Tokens of questions and answers per picture and step."""

VISUAL = GRID * GRID
_ASKED = 15
_BATCH = 50


@torch.no_grad()
def stored_features(tower: nn.Module, pool: Pool, count: int, path: Path) -> NDArray[np.float16]:
    """Run the tower over the first scenes of a pool, once; float16 `[count, N, C]` on disk."""
    if not path.exists():
        fresh = path.with_suffix(".tmp")
        file: np.memmap | None = None
        places = torch.arange(VISUAL).expand(_BATCH, -1)
        for start in range(0, count, _BATCH):
            with torch.autocast("cpu", torch.bfloat16):
                hidden, _ = tower(
                    to_input(np.asarray(pool.pixels[start : start + _BATCH]), torch.device("cpu")), places
                )
            part = hidden[:, 1:].half().numpy()
            if file is None:
                file = np.lib.format.open_memmap(fresh, "w+", dtype=np.float16, shape=(count, *part.shape[1:]))
            file[start : start + _BATCH] = part
        assert file is not None
        file.flush()
        os.replace(fresh, path)
    return np.load(path, mmap_mode="r")


def language_step(
    decoder: nn.Module,
    pool: Pool,
    features: NDArray[np.float16],
    *,
    pictures: int,
    seed: int,
    captions: int,
    detailed: bool = False,
    tower: nn.Module | None = None,
    side: int = GRID,
) -> Callable[[int], tuple[Tensor, Metrics]]:
    """Return the loss of a step on `pictures` scenes with fresh questions; deterministic per step.

    Half of the questions stand as first turn, half as a later turn: without that the decoder
    reads "where" from the distance of picture and question alone.

    Args:
        decoder: projector and decoder.
        pool: scenes.
        features: of the first scenes of the pool.
        pictures: scenes per step.
        seed: of the drawing.
        captions: descriptions per scene beside the questions.
        detailed: report the accuracy per kind as well.
        tower: the frozen tower, where pictures are smaller than a scene.
        side: of a picture in patches; smaller ones are cut in pixels, before the tower.
    """
    visual = side * side

    def draw(rng: np.random.Generator) -> tuple[Tensor, list[list[Thing]]]:
        if side == GRID or tower is None:
            rows = rng.integers(0, len(features), pictures)
            return torch.from_numpy(np.asarray(features[rows])).float(), [pool.things(int(row)) for row in rows]
        pixels, places, things = draw_uncut(pool, rng, pictures, side)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            hidden, _ = tower(to_input(pixels, torch.device("cpu")), torch.from_numpy(places))
        return hidden[:, 1:].float(), things

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        rng = np.random.default_rng([seed, step])
        seen, shown = draw(rng)
        asked = [[describe(rng, things) for _ in range(captions)] + ask(rng, things, _ASKED) for things in shown]
        batch = pack(asked, TOKENS)
        most = captions + _ASKED
        later = torch.from_numpy(rng.integers(0, TOKENS, (pictures, most)) * rng.integers(0, 2, (pictures, most)))
        mask = block_mask(batch.owners, HEAD + visual)
        with torch.autocast("cpu", torch.bfloat16):
            logits = decoder(seen, batch.ids, positions(batch, visual, later), mask)
        loss = answer_loss(logits, batch.labels)
        right, _ = hits(logits, batch)
        groups = dict(per_kind(batch, right))
        groups.pop("caption", None)  # which objects it names is a matter of taste
        share = float(np.mean([good for mine in groups.values() for good in mine]))
        metrics = {"loss": loss.item(), "right": share}
        names = sorted(groups) if detailed else ("number", "word", "colour", "where", "count", "exists")
        return loss, metrics | {name: float(np.mean(groups[name])) for name in names if name in groups}

    return loss_of
