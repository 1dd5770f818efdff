"""Scenes: small handwritten digits, printed numbers and words, and shapes on a dark photograph."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lmmprune.models.tiny_llava.digits import Split, digit_bank
from lmmprune.models.tiny_llava.scenes import COLOUR_NAMES, COLOURS
from small_llava.glyphs import FONTS, SIZES, WORDS, Printed, printed
from small_llava.photos import background

IMAGE_SIZE = 112
PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE
MIN_OBJECTS, MAX_OBJECTS = 4, 8

Kind = Literal["digit", "number", "word", "shape"]
KINDS: tuple[Kind, ...] = ("digit", "number", "word", "shape")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")

_GAP = 3  # pixels between the boxes of two objects
_MIN_INK = 3.0  # pixels of ink from which a patch counts as belonging to an object


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object of a scene.

    Attributes:
        kind: what sort of object.
        content: what it says or is: `7`, `142`, `lamp`, `circle`.
        colour: its colour.
        x: middle of its box in pixels.
        y: likewise.
        width: of its box in pixels.
        height: likewise.
    """

    kind: Kind
    content: str
    colour: str
    x: float
    y: float
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A rendered scene and its truth.

    Attributes:
        pixels: uint8 `[IMAGE_SIZE, IMAGE_SIZE, 3]`, RGB.
        things: the objects in the order of drawing.
        owners: int8 `[GRID, GRID]`, index of the object with most ink in the patch, -1 = none.
        glyphs: int8 `[GRID, GRID]`, character with most ink in a patch that a text owns, -1 = none.
    """

    pixels: NDArray[np.uint8]
    things: tuple[Thing, ...]
    owners: NDArray[np.int8]
    glyphs: NDArray[np.int8]

    @property
    def image(self) -> Image.Image:
        """The picture as a PIL image."""
        return Image.fromarray(self.pixels)


def _shape(name: str, side: int) -> NDArray[np.float32]:
    """Draw a filled shape, four times as large and reduced; float32 `[side, side]` in 0..1."""
    big = 4 * side
    canvas = Image.new("L", (big, big))
    draw = ImageDraw.Draw(canvas)
    end, middle = big - 1, big // 2
    if name == "circle":
        draw.ellipse((0, 0, end, end), fill=255)
    elif name == "ring":
        draw.ellipse((0, 0, end, end), fill=255)
        draw.ellipse((big // 4, big // 4, end - big // 4, end - big // 4), fill=0)
    elif name == "square":
        draw.rectangle((2, 2, end - 2, end - 2), fill=255)
    elif name == "triangle":
        draw.polygon((middle, 0, end, end, 0, end), fill=255)
    elif name == "diamond":
        draw.polygon((middle, 0, end, middle, middle, end, 0, middle), fill=255)
    else:
        arm = big // 6
        draw.rectangle((middle - arm, 0, middle + arm, end), fill=255)
        draw.rectangle((0, middle - arm, end, middle + arm), fill=255)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX), np.float32) / 255.0


def _trim(alpha: NDArray[np.float32]) -> NDArray[np.float32]:
    rows, columns = np.flatnonzero(alpha.max(1) > 0.15), np.flatnonzero(alpha.max(0) > 0.15)
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _draw(rng: np.random.Generator, split: Split, kind: Kind) -> tuple[str, Printed]:
    """Draw what an object says and its mask."""
    if kind == "digit":
        bank = digit_bank(split)
        row, variant = int(rng.integers(len(bank.values))), int(rng.integers(bank.masks.shape[1]))
        alpha = _trim(bank.masks[row, variant].astype(np.float32) / 255.0)
        value = int(bank.values[row])
        return str(value), Printed(alpha=alpha, owner=np.where(alpha > 0.1, value, -1).astype(np.int8))
    if kind == "shape":
        name = SHAPES[int(rng.integers(len(SHAPES)))]
        alpha = _shape(name, int(rng.integers(8, 13)))
        return name, Printed(alpha=alpha, owner=np.full(alpha.shape, -1, np.int8))
    low, high = ((10, 100), (100, 1000))[int(rng.integers(2))]
    text = str(rng.integers(low, high)) if kind == "number" else WORDS[int(rng.integers(len(WORDS)))]
    return text, printed(text, int(rng.integers(len(FONTS))), int(rng.choice(SIZES[split])))


def _layout(rng: np.random.Generator, boxes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Draw the left upper corners (x, y) of boxes (width, height) so that none comes near another."""
    while True:
        corners: list[tuple[int, int]] = []
        for width, height in boxes:
            for _ in range(40):
                x, y = (int(rng.integers(1, IMAGE_SIZE - length)) for length in (width, height))
                if all(
                    x >= other_x + other_width + _GAP
                    or other_x >= x + width + _GAP
                    or y >= other_y + other_height + _GAP
                    or other_y >= y + height + _GAP
                    for (other_x, other_y), (other_width, other_height) in zip(corners, boxes, strict=False)
                ):
                    corners.append((x, y))
                    break
            else:
                break
        if len(corners) == len(boxes):
            return corners


def _per_patch(ink: NDArray[np.float32]) -> NDArray[np.float32]:
    summed: NDArray[np.float32] = ink.reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE).sum((1, 3))
    return summed


def make_scene(rng: np.random.Generator, split: Split) -> Scene:
    """Draw one scene of MIN_OBJECTS to MAX_OBJECTS objects of at least two kinds."""
    count = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    # A scene has a taste: without it nearly every scene holds every kind of object.
    taste = rng.dirichlet(np.full(len(KINDS), 1.2))
    kinds = [KINDS[int(index)] for index in rng.choice(len(KINDS), count, p=taste)]
    drawn = [_draw(rng, split, kind) for kind in kinds]
    corners = _layout(rng, [mask.alpha.shape[::-1] for _, mask in drawn])
    canvas = background(rng, split, IMAGE_SIZE)
    things, inks, written = [], [], []
    for kind, (content, mask), (left, top) in zip(kinds, drawn, corners, strict=True):
        height, width = mask.alpha.shape
        colour = COLOUR_NAMES[int(rng.integers(len(COLOUR_NAMES)))]
        tint = ((np.array(COLOURS[colour]) + rng.uniform(-20, 20, 3)) * rng.uniform(0.85, 1.0)).astype(np.float32)
        box = np.s_[top : top + height, left : left + width]
        canvas[box] += mask.alpha[..., None] * (tint - canvas[box])
        ink = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
        ink[box] = mask.alpha
        owner = np.full((IMAGE_SIZE, IMAGE_SIZE), -1, np.int8)
        owner[box] = mask.owner
        present = sorted(set(mask.owner.ravel().tolist()) - {-1})
        per_character = np.stack([_per_patch(ink * (owner == index)) for index in present] or [0 * _per_patch(ink)])
        codes = np.array(present or [-1], np.int8)
        written.append(codes[per_character.argmax(0)])
        inks.append(_per_patch(ink))
        things.append(
            Thing(
                kind=kind,
                content=content,
                colour=colour,
                x=left + width / 2,
                y=top + height / 2,
                width=width,
                height=height,
            )
        )
    stacked = np.stack(inks)
    slot = stacked.argmax(0)
    owners = np.where(stacked.max(0) >= _MIN_INK, slot, -1).astype(np.int8)
    glyphs = np.where(owners >= 0, np.take_along_axis(np.stack(written), slot[None], 0)[0], -1).astype(np.int8)
    pixels = np.clip(canvas, 0, 255).astype(np.uint8)
    return Scene(pixels=pixels, things=tuple(things), owners=owners, glyphs=glyphs)


def scenes(split: Split, count: int, *, seed: int, first: int = 0) -> Iterator[Scene]:
    """Yield `count` scenes of a split from number `first` on; the same arguments give the same scenes."""
    for index in range(first, first + count):
        yield make_scene(np.random.default_rng([seed, index]), split)
