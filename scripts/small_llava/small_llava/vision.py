"""Stages 1 and 2: the tower learns to tell what lies on every patch, and where.

Place, kind, colour and content of an object must live in the features of its patches, because a
pruned LLaVA may number its visual tokens anew; and the CLS token must mean something, because
methods rank patches by its attention: it tells what is there and is matched with captions.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from training.loop import Metrics
from training.vision import to_input

from lmmprune.models.tiny_llava.scenes import COLOUR_NAMES
from small_llava.captions import CaptionEncoder, draw_captions
from small_llava.glyphs import CHARACTERS, WORDS
from small_llava.pools import Pool
from small_llava.scenes import GRID, KINDS, MAX_OBJECTS, PATCH_SIZE, SHAPES
from small_llava.windows import CELLS, IGNORE, PRESENT, Targets, draw_windows

READ = {
    "kind": (len(KINDS), 0.3),
    "colour": (len(COLOUR_NAMES), 0.4),
    "column": (CELLS, 0.4),
    "row": (CELLS, 0.4),
    "digit": (10, 1.0),
    "shape": (len(SHAPES), 0.6),
    "word": (len(WORDS), 1.0),
    "first": (10, 0.7),
    "second": (10, 0.7),
    "third": (11, 0.7),
    "glyph": (len(CHARACTERS), 1.0),
}
"""Read-outs of a patch: number of classes and weight in the loss."""

_COUNTS = MAX_OBJECTS + 1


class Heads(nn.Module):
    """Linear read-outs and the caption encoder, used only during training."""

    def __init__(self, width: int) -> None:
        """Create the heads for features of the given width."""
        super().__init__()
        # owned, anchor, own x, own y, object x, object y; then the classes
        self.patch = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 6 + sum(size for size, _ in READ.values())))
        seen = sum(PRESENT.values()) + len(KINDS) * _COUNTS
        self.cls = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, seen))
        self.final_cls = nn.Linear(width, seen)
        self.captions = CaptionEncoder(width)


def _cls_loss(logits: Tensor, targets: Targets) -> tuple[Tensor, Metrics]:
    many = targets.present.shape[1]
    known = (targets.present >= 0).float()
    wrong = functional.binary_cross_entropy_with_logits(
        logits[:, :many], targets.present.clamp(0), weight=known, reduction="none"
    )
    counts = logits[:, many:].unflatten(1, (len(KINDS), _COUNTS)).flatten(0, 1)
    true = targets.counts.flatten()
    counted = true >= 0
    count = functional.cross_entropy(counts, true, ignore_index=IGNORE, reduction="sum") / max(int(counted.sum()), 1)
    hits = (counts.argmax(1) == true)[counted].float().mean().item()
    return wrong.sum(1).mean() / 5 + 0.3 * count, {"count": hits}


def vision_loss(heads: Heads, hidden: Tensor, final: Tensor, targets: Targets) -> tuple[Tensor, Metrics]:
    """Sum the losses of the patch and CLS read-outs; report accuracies in 0..1."""
    out = heads.patch(hidden[:, 1:].float())
    whole = targets.whole
    own = torch.stack([targets.places % GRID, targets.places // GRID], -1).float() / GRID
    place = functional.smooth_l1_loss(out[..., 2:4], own, beta=0.05)
    centre = functional.smooth_l1_loss(out[..., 4:6][whole], targets.centre[whole], beta=0.02)
    is_owned = functional.binary_cross_entropy_with_logits(out[..., 0], targets.owned.float())
    is_anchor = functional.binary_cross_entropy_with_logits(out[..., 1], targets.anchor)
    cls, metrics = _cls_loss(heads.cls(hidden[:, 0].float()), targets)
    last, _ = _cls_loss(heads.final_cls(final.float()), targets)
    loss = place + 5 * centre + is_owned + is_anchor + cls + 0.5 * last
    start, right = 6, {}
    for name, (size, weight) in READ.items():
        true = targets.classes[name]
        known = true != IGNORE
        logits, true = out[..., start : start + size][known], true[known]
        start += size
        if len(true):
            loss = loss + weight * functional.cross_entropy(logits, true)
            right[name] = (logits.argmax(1) == true).float().mean().item()
    pixels = (out[..., 4:6] - targets.centre)[whole].abs().mean().item() * GRID * PATCH_SIZE
    return loss, {**right, "px": pixels, "owned": is_owned.item(), "cls": cls.item(), **metrics}


def vision_step(
    tower: nn.Module, heads: Heads, pool: Pool, *, batch: int, side: int, seed: int, captions: bool
) -> Callable[[int], tuple[Tensor, Metrics]]:
    """Return the loss of a step on `batch` windows of `side` patches; deterministic per step.

    Args:
        tower: a `WindowTower`.
        heads: the read-outs.
        pool: scenes.
        batch: windows per step.
        side: of a window in patches.
        seed: of the drawing.
        captions: match the CLS token with captions (whole scenes only).
    """
    device = heads.final_cls.weight.device

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(0, len(pool), batch)
        pixels, targets = draw_windows(pool, rng, batch, side, rows)
        with torch.autocast(device.type, torch.bfloat16):
            hidden, final = tower(to_input(pixels, device), targets.places)
        loss, metrics = vision_loss(heads, hidden, final, targets)
        if captions:
            match, hit = heads.captions(final.float(), draw_captions(pool, rng, rows))
            loss, metrics = loss + 0.5 * match, {**metrics, "caption": hit}
        return loss, {"loss": loss.item(), **metrics}

    return loss_of
