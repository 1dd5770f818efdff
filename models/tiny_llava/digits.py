"""Real handwritten digits, cut into a training and a held-out part, as alpha masks."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Split = Literal["train", "heldout"]

CANVAS = 16
"""Side of one digit mask in pixels; a mask is pasted centred on its digit."""

HELDOUT_INSTANCES = 400
SIZES = (11, 12, 13, 14)
"""Heights of a digit in pixels: with patches of 8 px its ink covers 2 to 6 of them."""

VARIANTS: dict[Split, int] = {"train": 16, "heldout": 4}
_SPLIT_SEED = 20260
_MAX_TURN_DEGREES = 12.0


@dataclass(frozen=True, kw_only=True)
class DigitBank:
    """Pre-rendered masks of the handwritten digits of one split.

    Attributes:
        masks: uint8 `[instances, variants, CANVAS, CANVAS]`, 255 = full ink.
        sizes: int64 `[instances, variants]`, height in pixels.
        values: int64 `[instances]`, the digit 0..9.
    """

    masks: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    values: NDArray[np.int64]


def _render(instance: NDArray[np.float64], size: int, turn: float) -> NDArray[np.uint8]:
    ink = np.clip(instance * (255.0 / 16.0), 0, 255).astype(np.uint8)
    glyph = Image.fromarray(ink).resize((size, size), Image.Resampling.BICUBIC)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(glyph, ((CANVAS - size) // 2, (CANVAS - size) // 2))
    turned = canvas.rotate(turn, Image.Resampling.BICUBIC)
    # The scans are soft: without the gain a digit of 11 px fades into the clutter.
    return np.clip(np.asarray(turned, np.float64) * 1.3, 0, 255).astype(np.uint8)


@lru_cache(maxsize=2)
def digit_bank(split: Split) -> DigitBank:
    """Render the digits of a split in several sizes and small rotations.

    The splits share no handwritten instance. The result is deterministic and cached.

    Reference: E. Alpaydin, C. Kaynak, 1998, Optical Recognition of Handwritten Digits (UCI),
    the test part as shipped with scikit-learn.
    """
    from sklearn.datasets import load_digits  # heavy: over a second to import

    data = load_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(data.images))
    chosen = order[:HELDOUT_INSTANCES] if split == "heldout" else order[HELDOUT_INSTANCES:]
    rng = np.random.default_rng([_SPLIT_SEED, len(chosen)])
    shape = (len(chosen), VARIANTS[split])
    sizes = rng.choice(SIZES, shape)
    turns = rng.uniform(-_MAX_TURN_DEGREES, _MAX_TURN_DEGREES, shape)
    masks = np.zeros((*shape, CANVAS, CANVAS), np.uint8)
    for row, instance in enumerate(chosen):
        for column in range(shape[1]):
            masks[row, column] = _render(data.images[instance], int(sizes[row, column]), float(turns[row, column]))
    return DigitBank(masks=masks, sizes=sizes, values=data.target[chosen].astype(np.int64))
