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
from small_llava.questions import ask
from small_llava.scenes import GRID

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
    decoder: nn.Module, pool: Pool, features: NDArray[np.float16], *, pictures: int, seed: int, detailed: bool = False
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
        detailed: report the accuracy per kind as well.
    """

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(0, len(features), pictures)
        batch = pack([ask(rng, pool.things(int(row)), _ASKED) for row in rows], TOKENS)
        later = torch.from_numpy(rng.integers(0, TOKENS, (pictures, _ASKED)) * rng.integers(0, 2, (pictures, _ASKED)))
        seen = torch.from_numpy(np.asarray(features[rows])).float()
        mask = block_mask(batch.owners, HEAD + VISUAL)
        with torch.autocast("cpu", torch.bfloat16):
            logits = decoder(seen, batch.ids, positions(batch, VISUAL, later), mask)
        loss = answer_loss(logits, batch.labels)
        right, _ = hits(logits, batch)
        metrics = {"loss": loss.item(), "right": right.float().mean().item()}
        groups = per_kind(batch, right)
        names = sorted(groups) if detailed else ("number", "word", "where", "count", "exists")
        return loss, metrics | {name: float(np.mean(groups[name])) for name in names if name in groups}

    return loss_of
