"""Draw which patches of a picture the vision graph kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_KEPT = (255, 176, 0)  # an amber that is told from greys with every kind of colour blindness
_DIM = 0.35  # how much of their brightness dropped patches keep
_SIDE = 672  # pixels that the longer side of the drawing has at least
_CAPTION = 40


def draw_kept(pixels: NDArray[np.uint8], kept: NDArray[np.int64], grid: tuple[int, int], caption: str) -> Image.Image:
    """Draw a picture with its dropped patches dimmed and grey, and the kept regions outlined.

    Args:
        pixels: uint8 ``[3, H, W]``, the picture as the model sees it.
        kept: int64 ``[K]``, indices of the kept patches in raster order.
        grid: rows and columns of patches; they divide the picture evenly.
        caption: one line below the picture.
    """
    rows, columns = grid
    height, width = pixels.shape[1:]
    # A whole number of pixels per patch, so that outlines lie on patch borders.
    cell = max(-(-_SIDE // max(rows, columns)), height // rows, width // columns)
    image = Image.fromarray(np.moveaxis(pixels, 0, -1)).resize((columns * cell, rows * cell), Image.Resampling.BICUBIC)
    mask = np.zeros(grid, bool)
    mask.flat[kept] = True
    grey = Image.blend(Image.new("RGB", image.size), image.convert("L").convert("RGB"), _DIM)
    area = Image.fromarray(mask.repeat(cell, 0).repeat(cell, 1))
    canvas = Image.new("RGB", (image.width, image.height + _CAPTION), "white")
    canvas.paste(Image.composite(image, grey, area))
    pen = ImageDraw.Draw(canvas)
    if not mask.all():
        _outline(pen, mask, cell)
    pen.text((10, image.height + _CAPTION // 2), caption, fill="black", font=_font(caption, image.width), anchor="lm")
    return canvas


def _outline(pen: ImageDraw.ImageDraw, mask: NDArray[np.bool_], cell: int) -> None:
    """Draw a line between every kept patch and a neighbour that isn't kept."""
    padded = np.pad(mask, 1)
    for row, column in np.argwhere(mask):
        x, y = column * cell, row * cell
        sides = (
            ((-1, 0), (x, y, x + cell - 1, y)),
            ((1, 0), (x, y + cell - 1, x + cell - 1, y + cell - 1)),
            ((0, -1), (x, y, x, y + cell - 1)),
            ((0, 1), (x + cell - 1, y, x + cell - 1, y + cell - 1)),
        )
        for (down, right), line in sides:
            if not padded[row + 1 + down, column + 1 + right]:
                pen.line([float(value) for value in line], fill=_KEPT, width=2)


def _font(text: str, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the largest font up to 20 points in which the text fits; the small bitmap one if there is no FreeType."""
    for size in (20, 16, 12):
        font = ImageFont.load_default(size)
        if font.getlength(text) <= width - 20:
            break
    return font
