"""Stages 3 and 4: projector and decoder learn to answer; the tower is frozen as in LLaVA-1.5.

Stage 4 mixes in pictures of other sizes: crops of the scene, cut in pixels before the tower and
asked only about what they show. With 144 visual tokens in every picture the decoder counts by
the share of ink among all tokens; several sizes make it count objects, as in a model for several
resolutions. No visual token of a picture is ever dropped behind the tower.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lmmprune.models.tiny_llava.questions import Question, ask
from lmmprune.models.tiny_llava.scenes import GRID, MAX_DIGITS, PATCH_SIZE
from training.loop import Metrics
from training.packing import BLOCK, HEAD, answer_loss, block_mask, pack
from training.pools import Pool
from training.vision import to_input

TURNS = 12
"""Questions per picture and step."""

MIN_SIDE = 4
"""Shortest side of a smaller picture, in patches."""

_CANDIDATES = 512


def draw_crops(
    pool: Pool, rng: np.random.Generator, pictures: int, width: int, height: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[list[Question]]]:
    """Draw crops that cut no digit in half and show at least two, with fresh questions.

    Returns:
        Pixels `[B, 8 * height, 8 * width, 3]`, raster indices of the patches `[B, N]`, questions.
    """
    rows = np.zeros(0, np.int64)
    corner = np.zeros((0, 2), np.int64)
    whole = np.zeros((0, MAX_DIGITS), bool)
    while len(rows) < pictures:
        candidates = rng.integers(0, len(pool), _CANDIDATES)
        corners = rng.integers(0, (GRID - width + 1, GRID - height + 1), (_CANDIDATES, 2))
        x, y = (corners[:, axis, None] + np.arange(side) for axis, side in enumerate((width, height)))
        owners = pool.owners[candidates]
        seen = owners[np.arange(_CANDIDATES)[:, None, None], y[:, :, None], x[:, None, :]]
        inside, total = (
            np.stack([(part == slot).sum((1, 2)) for slot in range(MAX_DIGITS)], 1) for part in (seen, owners)
        )
        shown = (inside == total) & (total > 0)
        good = ((inside == 0) | shown).all(1) & (shown.sum(1) >= 2)
        rows, corner = np.concatenate([rows, candidates[good]]), np.concatenate([corner, corners[good]])
        whole = np.concatenate([whole, shown[good]])
    rows, corner, whole = rows[:pictures], corner[:pictures], whole[:pictures]
    across, down = (
        corner[:, axis, None] * PATCH_SIZE + np.arange(side * PATCH_SIZE) for axis, side in enumerate((width, height))
    )
    pixels = pool.pixels[rows[:, None, None], down[:, :, None], across[:, None, :]]
    x, y = (corner[:, axis, None] + np.arange(side) for axis, side in enumerate((width, height)))
    places = (y[:, :, None] * GRID + x[:, None, :]).reshape(pictures, -1)
    asked = []
    for row, visible in zip(rows, whole, strict=True):
        digits = pool.scenes[int(row)].digits
        asked.append(ask(rng, [digits[slot] for slot in np.flatnonzero(visible)], TURNS))
    return pixels, places, asked


def draw_positions(rng: np.random.Generator, pictures: int, visual: int) -> Tensor:
    """Draw position ids `[B, S]`: half of the questions as first turn, half as a later turn.

    LLaVA is trained on conversations of several turns, so the distance of a question from the
    picture varies; without that the decoder reads "where" from the distance alone.
    """
    later = rng.integers(0, BLOCK * TURNS, (pictures, TURNS))
    later *= rng.integers(0, 2, (pictures, TURNS))
    turns = HEAD + visual + later[:, :, None] + np.arange(BLOCK)
    # All sequences have the length of a whole scene (one compiled graph); the rest is masked.
    prefix = np.broadcast_to(np.arange(HEAD + GRID * GRID), (pictures, HEAD + GRID * GRID))
    return torch.from_numpy(np.concatenate([prefix, turns.reshape(pictures, -1)], 1))


def language_step(
    tower: nn.Module,
    decoder: nn.Module,
    pool: Pool,
    vocabulary: dict[str, int],
    *,
    pictures: int,
    several_sizes: bool,
    seed: int,
    device: torch.device,
) -> Callable[[int], tuple[Tensor, Metrics]]:
    """Return the loss of a step on `pictures` pictures of TURNS questions; deterministic per step.

    Args:
        tower: the frozen tower.
        decoder: projector and decoder.
        pool: training scenes.
        vocabulary: word to token.
        pictures: pictures per step.
        several_sizes: every second step shows smaller pictures.
        seed: of the drawing.
        device: where to compute.
    """
    full = block_mask(HEAD + GRID * GRID, TURNS).to(device)

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        rng = np.random.default_rng([seed, step])
        smaller = several_sizes and step % 2 == 1
        width, height = rng.integers(MIN_SIDE, GRID + 1, 2).tolist() if smaller else (GRID, GRID)
        pixels, places, asked = draw_crops(pool, rng, pictures, width, height)
        visual = width * height
        batch = pack(vocabulary, asked).to(device)
        positions = draw_positions(rng, pictures, visual).to(device)
        mask = full.clone()
        mask[..., HEAD + visual : HEAD + GRID * GRID] = -1e4
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                hidden, _ = tower(to_input(pixels, device), torch.from_numpy(places).to(device))
            seen = functional.pad(hidden[:, 1:].float(), (0, 0, 0, GRID * GRID - visual))
            logits = decoder(seen, batch.ids, positions, mask)
        loss, right = answer_loss(logits, batch)
        share = right.float().mean().item()
        return loss, {"loss": loss.item(), "smaller" if smaller else "right": share}

    return loss_of
