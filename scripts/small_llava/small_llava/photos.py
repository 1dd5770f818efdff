"""Darkened crops of real photographs as backgrounds; training and held-out photographs differ."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lmmprune.models.tiny_llava.digits import Split

PHOTOGRAPHS: dict[Split, tuple[str, ...]] = {
    "train": (
        *("astronaut.png", "chelsea.png", "hubble_deep_field.jpg", "moon.png", "brick.png", "gravel.png"),
        *("coins.png", "ihc.png", "retina.jpg", "motorcycle_left.png", "cell.png"),
    ),
    "heldout": ("coffee.png", "rocket.jpg", "grass.png", "camera.png"),
}
"""Files inside scikit-image; those of the held-out scenes are in the public domain (CC0)."""

_LONGEST = 420  # pixels to which a photograph is reduced before it is cropped


@lru_cache(maxsize=2)
def photographs(split: Split) -> tuple[NDArray[np.uint8], ...]:
    """Load the photographs of a split as RGB, uint8 `[H, W, 3]`."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    loaded = []
    for name in PHOTOGRAPHS[split]:
        with Image.open(folder / name) as picture:
            rgb = picture.convert("RGB")
            rgb.thumbnail((_LONGEST, _LONGEST))
            loaded.append(np.asarray(rgb))
    return tuple(loaded)


def background(rng: np.random.Generator, split: Split, side: int) -> NDArray[np.float32]:
    """Draw a dark crop, float32 `[side, side, 3]`: objects on it stay legible."""
    pictures = photographs(split)
    picture = pictures[int(rng.integers(len(pictures)))]
    height, width = picture.shape[:2]
    span = int(rng.integers(side, min(height, width) + 1)) if min(height, width) > side else min(height, width)
    top, left = (int(rng.integers(0, length - span + 1)) for length in (height, width))
    crop = Image.fromarray(picture[top : top + span, left : left + span]).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    pixels = np.asarray(crop, np.float32)
    if rng.integers(2):
        pixels = pixels[:, ::-1]
    mean = pixels.mean((0, 1), keepdims=True)
    pixels = mean + (pixels - mean) * np.float32(rng.uniform(0.35, 0.8))  # less contrast
    target = rng.uniform(25, 60) * rng.uniform(0.8, 1.2, 3)
    pixels = pixels * (target / np.maximum(mean[0, 0], 20.0)).astype(np.float32)
    noise = rng.normal(0, 4, (side, side, 1)).astype(np.float32)
    return np.clip(pixels + noise, 0, 110).astype(np.float32)
