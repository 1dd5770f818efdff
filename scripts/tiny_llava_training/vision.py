"""Stages 1 and 2: the vision tower learns to read digits, first in windows, then in scenes.

Location, value and colour of a digit must live in the patch features, because a pruned LLaVA
re-numbers its visual tokens; and the CLS token must mean something, because methods rank patches
by its attention. Hence the heads on both, on the layer that feeds the projector.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModel

from lmmprune.models.tiny_llava.scenes import COLOUR_NAMES, GRID, MAX_DIGITS, PATCH_SIZE
from tiny_llava_training.loop import Metrics
from tiny_llava_training.pools import Pool

PAIRS = 10 * len(COLOUR_NAMES)
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def to_input(pixels: NDArray[np.uint8]) -> Tensor:
    """Normalise uint8 `[B, H, W, 3]` as CLIP does; float32 `[B, 3, H, W]`."""
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0 - _MEAN) / _STD


class WindowTower(nn.Module):
    """The CLIP tower on a square window of patches; returns the last two hidden states."""

    def __init__(self, tower: CLIPVisionModel) -> None:
        """Wrap the tower; its weights are shared."""
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `[B, 3, H, W]` whose patches lie at raster indices `places` `[B, N]`."""
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        table = embeddings.position_embedding.weight
        cls = (embeddings.class_embedding + table[0]).expand(len(pixels), 1, -1)
        hidden = torch.cat([cls, patches + table[places + 1]], 1)
        states = [self.tower.pre_layrnorm(hidden)]
        for layer in self.tower.encoder.layers:
            states.append(layer(states[-1], None))
        return states[-2], self.tower.post_layernorm(states[-1][:, 0])


class Heads(nn.Module):
    """Linear read-outs used only during training."""

    def __init__(self, width: int) -> None:
        """Create the heads for features of the given width."""
        super().__init__()
        # owned, anchor, own x, own y, digit x, digit y; then the digit, then the colour
        self.patch = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 6 + 10 + 6))
        self.cls = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, PAIRS + 10 + 6 + 9))
        self.final_cls = nn.Linear(width, PAIRS + 10 + 6 + 9)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Truth for a batch of windows; N patches, all tensors on the CPU.

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


def draw_windows(
    pool: Pool, rng: np.random.Generator, batch: int, side: int
) -> tuple[NDArray[np.uint8], Targets]:
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


def _cls_loss(logits: Tensor, targets: Targets) -> tuple[Tensor, float]:
    known = (targets.present >= 0).float()
    wrong = functional.binary_cross_entropy_with_logits(
        logits[:, :-9], targets.present.clamp(0), weight=known, reduction="none"
    )
    count = functional.cross_entropy(logits[:, -9:], targets.count, reduction="sum")
    counted = targets.count >= 0
    hits = (logits[:, -9:].argmax(1) == targets.count)[counted].float().mean().item()
    count = count / max(int(counted.sum()), 1)
    return wrong.sum(1).mean() / 4 + 0.3 * count, hits


def vision_loss(
    heads: Heads, hidden: Tensor, final: Tensor, targets: Targets
) -> tuple[Tensor, Metrics]:
    """Sum the losses of the patch and CLS read-outs; report accuracies in 0..1."""
    out = heads.patch(hidden[:, 1:].float())
    owned = targets.owned
    mine = out[owned]
    value = functional.cross_entropy(mine[:, 6:16], targets.value[owned])
    colour = functional.cross_entropy(mine[:, 16:], targets.colour[owned])
    own = torch.stack([targets.places % GRID, targets.places // GRID], -1).float() / GRID
    place = functional.smooth_l1_loss(out[..., 2:4], own, beta=0.05)
    centre = functional.smooth_l1_loss(mine[:, 4:6], targets.centre[owned], beta=0.02)
    is_owned = functional.binary_cross_entropy_with_logits(out[..., 0], owned.float())
    is_anchor = functional.binary_cross_entropy_with_logits(out[..., 1], targets.anchor)
    cls, counted = _cls_loss(heads.cls(hidden[:, 0].float()), targets)
    last, _ = _cls_loss(heads.final_cls(final.float()), targets)
    loss = value + 0.5 * colour + place + 5 * centre + is_owned + is_anchor + cls + 0.5 * last
    right = mine[:, 6:16].argmax(1) == targets.value[owned]
    anchors = targets.anchor[owned] > 0
    return loss, {
        "loss": loss.item(),
        "digit": right.float().mean().item(),
        "anchor": right[anchors].float().mean().item(),
        "colour": (mine[:, 16:].argmax(1) == targets.colour[owned]).float().mean().item(),
        "px": (mine[:, 4:6] - targets.centre[owned]).abs().mean().item() * GRID * PATCH_SIZE,
        "owned": is_owned.item(),
        "cls": cls.item(),
        "count": counted,
    }
