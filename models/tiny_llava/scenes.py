"""Scenes: a few small coloured handwritten digits scattered over clutter."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lmmprune.models.tiny_llava.digits import CANVAS, DigitBank, Split, digit_bank

IMAGE_SIZE = 96
PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE
MIN_DIGITS, MAX_DIGITS = 4, 8

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (235, 45, 40),
    "green": (45, 205, 60),
    "blue": (60, 115, 255),
    "yellow": (245, 220, 45),
    "purple": (200, 70, 225),
    "white": (245, 245, 245),
}
COLOUR_NAMES = tuple(COLOURS)

_CELL = 16  # two patches: a coarse grid keeps the layout learnable, the jitter keeps it honest
_JITTER = 3
_MIN_INK = 3.0  # pixels of ink from which a patch counts as belonging to a digit


@dataclass(frozen=True, kw_only=True)
class Digit:
    """One digit of a scene: what it says, its colour and its centre and height in pixels."""

    value: int
    colour: str
    x: int
    y: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A rendered scene and its truth.

    Attributes:
        pixels: uint8 `[IMAGE_SIZE, IMAGE_SIZE, 3]`, RGB.
        digits: the digits in the order of drawing.
        owners: int8 `[GRID, GRID]`, index of the digit with most ink in the patch, -1 = none.
    """

    pixels: NDArray[np.uint8]
    digits: tuple[Digit, ...]
    owners: NDArray[np.int8]

    @property
    def image(self) -> Image.Image:
        """The picture as a PIL image."""
        return Image.fromarray(self.pixels)


def _layout(rng: np.random.Generator, sizes: list[int]) -> list[tuple[int, int]]:
    """Draw centres (x, y) on the jittered grid so that no two digit boxes overlap."""
    margin = CANVAS // 2
    while True:
        centres: list[tuple[int, int]] = []
        cells = rng.permutation((IMAGE_SIZE // _CELL) ** 2)
        jitter = rng.integers(-_JITTER, _JITTER + 1, (len(cells), 2))
        for cell, (dx, dy) in zip(cells, jitter, strict=True):
            row, column = divmod(int(cell), IMAGE_SIZE // _CELL)
            x, y = (
                min(max(_CELL * place + _CELL // 2 + int(shift), margin), IMAGE_SIZE - margin)
                for place, shift in ((column, dx), (row, dy))
            )
            size = sizes[len(centres)]
            if all(
                max(abs(x - other_x), abs(y - other_y)) >= (size + other_size) / 2
                for (other_x, other_y), other_size in zip(centres, sizes, strict=False)
            ):
                centres.append((x, y))
                if len(centres) == len(sizes):
                    return centres


def _clutter(rng: np.random.Generator) -> NDArray[np.float32]:
    """Paint a dark noisy background with dull strokes and dots, float32 `[H, W, 3]`."""
    base = rng.integers(25, 75, 3)
    canvas = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), tuple(int(part) for part in base))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(4, 9))):
        grey = rng.integers(50, 135)
        shade = np.clip(grey + rng.integers(-25, 26, 3), 0, 255).tolist()
        start = rng.integers(0, IMAGE_SIZE, 2)
        steps = rng.integers(-22, 23, (int(rng.integers(1, 4)), 2))
        points = np.cumsum(np.vstack([start, steps]), axis=0).flatten().tolist()
        draw.line(points, fill=tuple(shade), width=int(rng.integers(1, 3)))
    for x, y in rng.integers(0, IMAGE_SIZE, (int(rng.integers(5, 16)), 2)).tolist():
        shade = rng.integers(40, 220, 3).tolist()
        draw.rectangle((x, y, x + 1, y + int(rng.integers(0, 2))), fill=tuple(shade))
    noise = rng.integers(-12, 13, (IMAGE_SIZE, IMAGE_SIZE, 1), dtype=np.int8)
    return np.asarray(canvas, np.float32) + noise


def _paste(
    canvas: NDArray[np.float32], mask: NDArray[np.uint8], colour: NDArray[np.float64], digit: Digit
) -> NDArray[np.float32]:
    """Blend the digit into the canvas in place; return its ink per patch `[GRID, GRID]`."""
    top, left = digit.y - CANVAS // 2, digit.x - CANVAS // 2
    alpha = mask.astype(np.float32) / 255.0
    window = canvas[top : top + CANVAS, left : left + CANVAS]
    window += alpha[..., None] * (colour.astype(np.float32) - window)
    ink = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    ink[top : top + CANVAS, left : left + CANVAS] = alpha
    per_patch: NDArray[np.float32] = ink.reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE).sum((1, 3))
    return per_patch


def make_scene(rng: np.random.Generator, bank: DigitBank) -> Scene:
    """Draw one scene of MIN_DIGITS to MAX_DIGITS digits from the bank."""
    count = int(rng.integers(MIN_DIGITS, MAX_DIGITS + 1))
    instances = rng.integers(0, len(bank.values), count)
    variants = rng.integers(0, bank.masks.shape[1], count)
    sizes = bank.sizes[instances, variants].tolist()
    canvas = _clutter(rng)
    digits: list[Digit] = []
    ink: list[NDArray[np.float32]] = []
    for index, (x, y) in enumerate(_layout(rng, sizes)):
        colour = COLOUR_NAMES[int(rng.integers(len(COLOUR_NAMES)))]
        value = int(bank.values[instances[index]])
        digit = Digit(value=value, colour=colour, x=x, y=y, size=sizes[index])
        tint = (np.array(COLOURS[colour]) + rng.uniform(-20, 20, 3)) * rng.uniform(0.85, 1.0)
        ink.append(_paste(canvas, bank.masks[instances[index], variants[index]], tint, digit))
        digits.append(digit)
    inks = np.stack(ink)
    owners = np.where(inks.max(0) >= _MIN_INK, inks.argmax(0), -1).astype(np.int8)
    pixels = np.clip(canvas, 0, 255).astype(np.uint8)
    return Scene(pixels=pixels, digits=tuple(digits), owners=owners)


def scenes(split: Split, count: int, *, seed: int) -> Iterator[Scene]:
    """Yield `count` scenes of a split; the same arguments give the same scenes."""
    bank = digit_bank(split)
    for index in range(count):
        yield make_scene(np.random.default_rng([seed, index]), bank)
