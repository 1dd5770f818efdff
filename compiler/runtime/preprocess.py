"""Turn a picture into ``pixel_values``, bit for bit as transformers' PIL image processors do, with pillow and numpy.

``preprocessor.json`` states the steps in their order; a step that is null is off::

    {"resize": {"shortest_edge": 336}, "resample": "bicubic", "crop": [336, 336],
     "rescale": 0.00392156862745098, "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}

``resize`` may also be ``{"height": h, "width": w}``; sizes are in pixels, height before width. ``"longest_edge": n``,
if there, comes first: it resizes the picture in its own shape to a longest edge of n pixels, and an even other one.
``"square": [122, 116, 104]``, if there, comes before all else: it pads the picture to a square with this colour.
``"tiles": [2, 2]``, if there, cuts a picture into so many rows and columns of tiles, each of the final size, and puts
an overview of the whole picture before them, squeezed into one tile; each of these images then takes the steps.
``"grids": {"rule": "shape", "grids": [[1, 1], [2, 2]], "side": [448, 448], "least": 1, "most": 12}``, if there, cuts a
picture into the tiles of one of these grids, with the overview behind them; ``tile_rule`` says how.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lmmprune.compiler.bundle.tile_grids import Grid
from lmmprune.compiler.runtime.open_picture import MAX_PIXELS, to_rgb
from lmmprune.compiler.runtime.read_steps import read_steps
from lmmprune.compiler.runtime.tile_rule import Picked, TileRule
from lmmprune.compiler.runtime.tiles import cut, letterbox
from lmmprune.errors import BundleError, InputError


@dataclass(frozen=True, kw_only=True)
class Preprocessor:
    """The steps from an RGB picture to the input of the vision graph.

    Attributes:
        resize: target of the shortest edge, or height and width, in pixels.
        resample: name of the interpolation.
        crop: height and width of the centre crop in pixels; smaller pictures are padded with black.
        rescale: factor on the 0..255 values.
        mean: subtracted per channel after rescaling.
        std: divided by per channel.
        longest_edge: target of the longest edge in a resize before the other; None: there is none.
        square: colour that pads a picture to a square before everything else; None: it keeps its shape.
        tiles: rows and columns of tiles beside the overview; None: the picture goes in as a whole.
        grids: how the grid of tiles follows from a picture; None: there are none, or always ``tiles``.
    """

    resize: int | tuple[int, int] | None
    resample: Image.Resampling
    crop: tuple[int, int] | None
    rescale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    longest_edge: int | None = None
    square: tuple[int, int, int] | None = None
    tiles: tuple[int, int] | None = None
    grids: TileRule | None = None

    def __post_init__(self) -> None:
        """Check that the steps make sense together.

        Raises:
            ValueError: They don't.
        """
        sizes = {"resize": self.resize, "crop": self.crop, "tiles": self.tiles, "longest_edge": self.longest_edge}
        for name, found in sizes.items():
            numbers = found if isinstance(found, tuple) else () if found is None else (found,)
            if any(number < 1 for number in numbers):
                raise ValueError(f"'{name}' is {found}: expected positive numbers")
        if self.tiles is not None and self.resize is None:
            raise ValueError("it has 'tiles' and no 'resize', which says how large a tile is")
        if self.grids is not None and (self.tiles or self.crop or self.square or self.resize != self.grids.side):
            raise ValueError("it has 'grids' beside 'tiles', 'crop' or 'square', or a 'resize' to another size")
        if self.rescale is not None and not _is_number(self.rescale):
            raise ValueError(f"'rescale' is {self.rescale!r}: expected a number")
        if (self.mean is None) != (self.std is None):
            raise ValueError("it has one of 'mean' and 'std', expected both or none")
        for name, row in (("mean", self.mean), ("std", self.std)):
            if row is not None and not (len(row) == 3 and all(map(_is_number, row)) and (name == "mean" or all(row))):
                raise ValueError(
                    f"'{name}' is {list(row)}: expected one number per colour{', not 0' * (name == 'std')}"
                )

    @classmethod
    def load(cls, path: Path) -> Preprocessor:
        """Read ``preprocessor.json``.

        Raises:
            BundleError: It can't be read or doesn't have the form that the module describes.
        """
        try:
            return cls(**read_steps(path))
        except (OSError, ValueError) as error:
            raise BundleError(f"'{path}' can't be used ({error}): export again") from error

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape ``[B, 3, H, W]`` of what the vision graph sees at once; None where that depends on the picture."""
        sides = self.crop or (self.resize if isinstance(self.resize, tuple) else None)
        rows, columns = self.tiles or (0, 0)
        return None if sides is None else (1 + rows * columns, 3, *sides)

    def pick(self, image: Image.Image) -> Picked | None:
        """Return the grid of tiles that a picture is cut into; None where there are none to choose from."""
        if self.grids is None:
            return None
        width, height = image.size
        if self.longest_edge is not None:
            width, height = _with_longest(self.longest_edge, width, height)
        return self.grids.pick(width, height)

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the picture as the model sees it, with all tiles side by side.

        Returns:
            uint8 ``[3, H, W]``.
        """
        picture = to_rgb(image)
        if (picked := self.pick(picture)) is not None and self.grids is not None:
            return _channels_first(self.grids.fill(self._lengthened(picture), picked.grid, self.resample))
        if self.tiles is None or self.resize is None:
            return self._steps(picture)
        return _channels_first(self._whole(picture, self.tiles, self.resize))

    def __call__(self, image: Image.Image, grid: Grid | None = None) -> NDArray[np.float32]:
        """Return ``pixel_values``, float32 ``[1, 3, H, W]``; with tiles one row for the overview and each tile.

        Args:
            image: The picture.
            grid: Tiles to cut it into, where there are grids to choose from; None: as ``pick`` says.

        Raises:
            InputError: The picture is so narrow that resizing it would fill the memory.
        """
        picture = to_rgb(image)
        if (picked := self.pick(picture)) is not None and self.grids is not None:
            tiles = self.grids.tiles(self._lengthened(picture), grid or picked.grid, self.resample)
            return self.normalize(np.stack([_channels_first(image) for image in tiles]))
        if self.tiles is None or self.resize is None:
            return self.normalize(self._steps(picture)[None])
        height, width = _sides(self.resize)
        overview = picture.resize((width, height), resample=self.resample)
        images = [overview, *cut(self._whole(picture, self.tiles, self.resize), *self.tiles)]
        return self.normalize(np.stack([self._steps(image) for image in images]))

    def normalize(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return uint8 ``[B, 3, H, W]`` rescaled and normalised as float32."""
        # The reference rescales in float64, rounds to float32, and normalises in float32: so do we, to the last bit.
        values = pixels.astype(np.float32)
        if self.rescale is not None:
            values = (pixels.astype(np.float64) * self.rescale).astype(np.float32)
        if self.mean is not None and self.std is not None:
            mean, std = (np.array(row, np.float32)[:, None, None] for row in (self.mean, self.std))
            values = (values - mean) / std
        return np.ascontiguousarray(values)

    def _steps(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Pad, resize and crop an RGB picture."""
        if self.square is not None:
            picture = _squared(picture, self.square)
        picture = self._lengthened(picture)
        if self.resize is not None:
            height, width = _resized(self.resize, picture.height, picture.width)
            picture = picture.resize((width, height), resample=self.resample)
        pixels = _channels_first(picture)
        return pixels if self.crop is None else _center_crop(pixels, *self.crop)

    def _lengthened(self, picture: Image.Image) -> Image.Image:
        """Resize a picture to its longest edge, if that has a target."""
        if self.longest_edge is None:
            return picture
        return picture.resize(_with_longest(self.longest_edge, *picture.size), resample=self.resample)

    def _whole(self, picture: Image.Image, tiles: tuple[int, int], resize: int | tuple[int, int]) -> Image.Image:
        """Return a picture that fills all tiles."""
        height, width = self.crop or _sides(resize)
        return letterbox(picture, tiles[0] * height, tiles[1] * width, self.resample)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _sides(resize: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width that an overview is resized to, whatever its shape."""
    return resize if isinstance(resize, tuple) else (resize, resize)


def _resized(resize: int | tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Return height and width that a picture of this height and width is resized to.

    Raises:
        InputError: It is so narrow that this would fill the memory.
    """
    if isinstance(resize, tuple):
        return resize
    short, long = sorted((height, width))
    # In this order of operations: 336 * 1000 / 333 and 336 * (1000 / 333) may truncate differently.
    stretched = int(resize * long / short)
    if stretched * resize > MAX_PIXELS:
        raise InputError(
            f"the picture is {width} x {height} pixels: with the shorter edge at {resize} the longer one "
            f"would get {stretched}; crop it first"
        )
    return (stretched, resize) if width <= height else (resize, stretched)


def _squared(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Put a picture into the middle of a square of its longer edge; an odd pixel goes behind it."""
    side = max(picture.size)
    if side * side > MAX_PIXELS:
        raise InputError(
            f"the picture is {picture.width} x {picture.height} pixels, and this model pads it to a square of {side}:"
            " scale it down or crop it first"
        )
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return canvas


def _channels_first(picture: Image.Image) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = np.moveaxis(np.asarray(picture), -1, 0)
    return pixels


def _with_longest(edge: int, width: int, height: int) -> tuple[int, int]:
    """Return width and height of about the same shape; both orders of operations are the reference's."""
    shape = width / height
    other = int(edge / shape) if width >= height else int(edge * shape)
    other = max(other + other % 2, 1)
    return (edge, other) if width >= height else (other, edge)


def _center_crop(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Crop ``[3, H, W]`` around the centre; where it is smaller it is padded with zeros first."""
    for axis, size in ((1, height), (2, width)):
        found = pixels.shape[axis]
        if found < size:
            # The odd pixel of padding goes in front, that of cropping stays behind: as the reference does.
            before = math.ceil((size - found) / 2)
            padding = [(0, 0)] * 3
            padding[axis] = (before, size - found - before)
            pixels = np.pad(pixels, padding)
        else:
            start = (found - size) // 2
            pixels = pixels.take(np.arange(start, start + size), axis)
    return pixels
