"""Windows of training scenes with the truth of every patch."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmmprune.models.tiny_llava.scenes import COLOUR_NAMES, GRID, MAX_DIGITS, PATCH_SIZE
from training.pools import Pool

PAIRS = 10 * len(COLOUR_NAMES)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Truth for a batch of windows; N patches, drawn on the CPU.

    Attributes:
        places: raster index of each patch `[B, N]`.
        owned: whether a digit owns the patch `[B, N]`.
        anchor: whether the patch holds the centre of its digit `[B, N]`.
        value: digit 0..9 of the owner `[B, N]`.
        colour: colour index of the owner `[B, N]`.
        centre: centre of the owner in 0..1 `[B, N, 2]`.
        present: which pairs, digits and colours are there `[B, PAIRS + 16]`, -1 = cut in half.
        count: number of digits `[B]`, -100 = some are cut.
    """

    places: Tensor
    owned: Tensor
    anchor: Tensor
    value: Tensor
    colour: Tensor
    centre: Tensor
    present: Tensor
    count: Tensor

    def to(self, device: torch.device) -> "Targets":
        """Copy the targets to a device."""
        return Targets(**{name: value.to(device) for name, value in vars(self).items()})


def draw_windows(pool: Pool, rng: np.random.Generator, batch: int, side: int) -> tuple[NDArray[np.uint8], Targets]:
    """Cut windows of `side` patches around random digits (or whole scenes) with their truth."""
    rows = rng.integers(0, len(pool), batch)
    truth, owners = pool.truth[rows], pool.owners[rows].astype(np.int64)
    slots = (rng.random(batch) * (truth[:, :, 0] >= 0).sum(1)).astype(np.int64)
    centre = truth[np.arange(batch), slots, 2:] // PATCH_SIZE
    corner = centre - rng.integers(1, max(side - 1, 2), (batch, 2))
    corner = np.clip(corner, 0, GRID - side)  # x, y of the first patch
    x, y = (corner[:, axis, None] + np.arange(side) for axis in (0, 1))
    each = np.arange(batch)[:, None, None]
    pixel = np.arange(side * PATCH_SIZE)
    pixels = pool.pixels[
        rows[:, None, None],
        (corner[:, 1, None] * PATCH_SIZE + pixel)[:, :, None],
        (corner[:, 0, None] * PATCH_SIZE + pixel)[:, None, :],
    ]
    owner = owners[each, y[:, :, None], x[:, None, :]].reshape(batch, -1)
    places = (y[:, :, None] * GRID + x[:, None, :]).reshape(batch, -1)
    mine = truth[np.arange(batch)[:, None], np.maximum(owner, 0)]
    middle = mine[..., 3] // PATCH_SIZE * GRID + mine[..., 2] // PATCH_SIZE
    slot_range = np.arange(MAX_DIGITS)
    inside = (owner[:, :, None] == slot_range).sum(1)
    total = (owners.reshape(batch, -1, 1) == slot_range).sum(1)
    present = np.zeros((batch, PAIRS + 16), np.float32)
    for state, chosen in ((-1.0, (inside > 0) & (inside < total)), (1.0, inside == total)):
        scene, slot = np.nonzero(chosen & (total > 0))
        value, colour = truth[scene, slot, 0], truth[scene, slot, 1]
        present[scene, colour * 10 + value] = state
        present[scene, PAIRS + value] = state
        present[scene, PAIRS + 10 + colour] = state
    cut = ((inside > 0) & (inside < total)).any(1)
    return pixels, Targets(
        places=torch.from_numpy(places),
        owned=torch.from_numpy(owner >= 0),
        anchor=torch.from_numpy((owner >= 0) & (middle == places)).float(),
        value=torch.from_numpy(mine[..., 0]),
        colour=torch.from_numpy(mine[..., 1]),
        centre=torch.from_numpy(mine[..., 2:] / (GRID * PATCH_SIZE)).float(),
        present=torch.from_numpy(present),
        count=torch.from_numpy(np.where(cut, -100, ((inside == total) & (total > 0)).sum(1))),
    )
