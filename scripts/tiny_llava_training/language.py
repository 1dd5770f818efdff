"""Stage 3: projector and decoder learn to answer; the vision tower is frozen as in LLaVA-1.5."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from lmmprune.models.tiny_llava.questions import ask
from lmmprune.models.tiny_llava.scenes import GRID
from tiny_llava_training.loop import Metrics
from tiny_llava_training.packing import BLOCK, HEAD, answer_loss, block_mask, pack
from tiny_llava_training.pools import Pool
from tiny_llava_training.vision import to_input

TURNS = 12
"""Questions per picture and step."""


def tower_features(tower: nn.Module, pool: Pool, device: torch.device) -> Tensor:
    """Run the frozen tower once over the pool; bfloat16 `[S, N, C]` without CLS, on the CPU."""
    batch = 125  # divides any pool
    places = torch.arange(GRID * GRID, device=device).expand(batch, -1)
    parts = []
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        for start in range(0, len(pool), batch):
            hidden, _ = tower(to_input(pool.pixels[start : start + batch], device), places)
            parts.append(hidden[:, 1:].bfloat16().cpu())
    return torch.cat(parts)


def draw_positions(rng: np.random.Generator, pictures: int, visual: int) -> Tensor:
    """Draw position ids `[B, S]`: half of the questions as first turn, half as a later turn.

    LLaVA is trained on conversations of several turns, so the distance of a question from the
    picture varies; without that the decoder reads "where" from the distance alone.
    """
    later = rng.integers(0, BLOCK * TURNS, (pictures, TURNS)) * rng.integers(0, 2, (pictures, TURNS))
    turns = HEAD + visual + later[:, :, None] + np.arange(BLOCK)
    prefix = np.broadcast_to(np.arange(HEAD + visual), (pictures, HEAD + visual))
    return torch.from_numpy(np.concatenate([prefix, turns.reshape(pictures, -1)], 1))


def language_step(
    decoder: nn.Module,
    features: Tensor,
    pool: Pool,
    vocabulary: dict[str, int],
    *,
    pictures: int,
    seed: int,
    device: torch.device,
) -> Callable[[int], tuple[Tensor, Metrics]]:
    """Return the loss of a step on `pictures` scenes of TURNS questions; deterministic per step."""
    visual = features.shape[1]
    mask = block_mask(HEAD + visual, TURNS).to(device)

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(0, len(pool), pictures)
        asked = [ask(rng, pool.scenes[row].digits, TURNS) for row in rows]
        batch = pack(vocabulary, asked).to(device)
        positions = draw_positions(rng, pictures, visual).to(device)
        seen = features[torch.from_numpy(rows)].to(device)
        with torch.autocast(device.type, torch.bfloat16):
            logits = decoder(seen, batch.ids, positions, mask)
        loss, right = answer_loss(logits, batch)
        return loss, {"loss": loss.item(), "right": right.float().mean().item()}

    return loss_of
