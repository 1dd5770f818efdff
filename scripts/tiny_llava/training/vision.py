"""Stages 1 and 2: the vision tower learns to read digits, first in windows, then in scenes.

Location, value and colour of a digit must live in the patch features, because a pruned LLaVA
re-numbers its visual tokens; and the CLS token must mean something, because methods rank patches
by its attention. Hence the heads on both, on the layer that feeds the projector.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModel
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from lmmprune.models.tiny_llava.scenes import GRID, PATCH_SIZE
from training.loop import Metrics
from training.pools import Pool
from training.windows import PAIRS, Targets, draw_windows


def to_input(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Normalise uint8 `[B, H, W, 3]` as CLIP does; float32 `[B, 3, H, W]`."""
    mean = torch.tensor(OPENAI_CLIP_MEAN, device=device).view(3, 1, 1)
    std = torch.tensor(OPENAI_CLIP_STD, device=device).view(3, 1, 1)
    whole = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
    return (whole.float() / 255.0 - mean) / std


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


def vision_loss(heads: Heads, hidden: Tensor, final: Tensor, targets: Targets) -> tuple[Tensor, Metrics]:
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


def vision_step(
    tower: nn.Module, heads: Heads, pool: Pool, *, batch: int, side: int, seed: int
) -> Callable[[int], tuple[Tensor, Metrics]]:
    """Return the loss of a step on `batch` windows of `side` patches; deterministic per step."""
    device = heads.final_cls.weight.device

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        pixels, targets = draw_windows(pool, np.random.default_rng([seed, step]), batch, side)
        targets = targets.to(device)
        with torch.autocast(device.type, torch.bfloat16):
            hidden, final = tower(to_input(pixels, device), targets.places)
        return vision_loss(heads, hidden, final, targets)

    return loss_of
