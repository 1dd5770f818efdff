"""Printed words and numbers as alpha masks, character by character, in several fonts."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lmmprune.models.tiny_llava.digits import Split

WORDS = (
    *("cat", "dog", "sun", "map", "box", "key", "cup", "hat", "bus", "pen", "fox", "owl"),
    *("lamp", "door", "tree", "fish", "bird", "moon", "rain", "wind", "boat", "frog", "milk", "salt"),
)
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz"

# File name and what to add to the size: STIX is drawn smaller than DejaVu.
FONTS: tuple[tuple[str, int], ...] = (
    ("DejaVuSans", 0),
    ("DejaVuSans-Bold", 0),
    ("DejaVuSerif", 0),
    ("DejaVuSerif-Bold", 0),
    ("DejaVuSansMono", 0),
    ("DejaVuSansMono-Bold", 0),
    ("STIXGeneral", 2),
    ("STIXGeneralBol", 2),
)
SIZES: dict[Split, tuple[int, ...]] = {"train": (10, 12, 14), "heldout": (11, 13)}
"""Font sizes in pixels; those of the held-out scenes lie between the trained ones."""


@dataclass(frozen=True, kw_only=True)
class Printed:
    """A printed text, cropped to its ink.

    Attributes:
        alpha: float32 `[H, W]` in 0..1.
        owner: int8 `[H, W]`, index into `CHARACTERS` of the character with the most ink, -1 = none.
    """

    alpha: NDArray[np.float32]
    owner: NDArray[np.int8]


@lru_cache(maxsize=64)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # ships the fonts; heavy to import

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


@lru_cache(maxsize=4096)
def _glyph(name: str, size: int, character: str) -> NDArray[np.float32]:
    """Draw one character 3 px from the left of a canvas; float32 `[2 * size, 3 * size]`."""
    canvas = Image.new("L", (3 * size, 2 * size))
    ImageDraw.Draw(canvas).text((3, 2), character, font=_font(name, size), fill=255)
    return np.asarray(canvas, np.float32) / 255.0


@lru_cache(maxsize=200_000)
def printed(text: str, font: int, size: int) -> Printed:
    """Print a text with `FONTS[font]` in a size in pixels."""
    name, more = FONTS[font]
    size += more
    places = [round(_font(name, size).getlength(text[:index])) for index in range(len(text))]
    layers = np.zeros((len(text), 2 * size, places[-1] + 3 * size), np.float32)
    for layer, place, character in zip(layers, places, text, strict=True):
        layer[:, place : place + 3 * size] = _glyph(name, size, character)
    alpha = layers.max(0)
    rows, columns = np.flatnonzero(alpha.max(1) > 0.1), np.flatnonzero(alpha.max(0) > 0.1)
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    indices = np.array([CHARACTERS.index(character) for character in text], np.int8)
    owner = np.where(alpha > 0.1, indices[layers.argmax(0)], -1).astype(np.int8)
    return Printed(alpha=alpha[box], owner=owner[box])
