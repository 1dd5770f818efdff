"""Draw which patches of a picture stay, site by site, and which of them others were merged into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MOST = 8  # panels that are still told apart
# Amber and blue are told from each other and from greys with every kind of colour blindness; they differ in form too.
KEPT = (255, 176, 0)
MERGED = (77, 163, 255)
_SEAM = (0, 24, 64)
_DIM = 0.35  # how much of their brightness dropped patches keep
_ROW = 4  # panels side by side
_WIDTH = 1440  # pixels that a row of panels has to share
_SIDES = (384, 672)  # the least and the most that this gives the longer side of a panel
_GAP = 16
_CAPTION, _LINE = 40, 26
_FONTS = (20, 16, 12)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture of the drawing.

    Attributes:
        kept: int64 ``[K]``, indices of the kept patches in raster order; -1 for a token in no patch's place.
        received: bool ``[K]``, whether others were merged into it.
        caption: One line below the picture.
        note: A second one; may be empty.
    """

    kept: NDArray[np.int64]
    received: NDArray[np.bool_]
    caption: str
    note: str = ""


def evenly(names: Sequence[str]) -> list[str]:
    """Return as many of the names as a drawing has panels at most, evenly spread, the first and the last among them."""
    if len(names) <= MOST:
        return list(names)
    return [names[round(i * (len(names) - 1) / (MOST - 1))] for i in range(MOST)]


def draw_panels(
    pixels: NDArray[np.uint8], panels: Sequence[Panel], grid: tuple[int, int], footer: str = ""
) -> Image.Image:
    """Draw a picture once per panel: dropped patches dimmed and grey, kept regions and receiving patches outlined.

    Args:
        pixels: uint8 ``[3, H, W]``, the picture as the model sees it.
        panels: At least one; up to four stand side by side.
        grid: rows and columns of patches; they divide the picture evenly.
        footer: One line below all panels; may be empty.
    """
    columns = -(-len(panels) // -(-len(panels) // _ROW))
    pictures = [_picture(pixels, panel, grid, columns) for panel in panels]
    width, height = pictures[0].size
    font = _font([text for panel in panels for text in (panel.caption, panel.note)], width - 20)
    below = _CAPTION + (_LINE if any(panel.note for panel in panels) else 0)
    rows = -(-len(panels) // columns)
    step = height + below + _GAP
    merging = any(panel.received.any() for panel in panels)
    legend = merging or len(panels) > 1
    size = (
        columns * width + (columns - 1) * _GAP,
        rows * step - _GAP + (_CAPTION if legend else 0) + (_CAPTION if footer else 0),
    )
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for index, (panel, picture) in enumerate(zip(panels, pictures, strict=True)):
        row, column = divmod(index, columns)
        x, y = column * (width + _GAP), row * step
        canvas.paste(picture, (x, y))
        _write(pen, (x + 10, y + height + _CAPTION // 2), panel.caption, font, width - 20)
        _write(pen, (x + 10, y + height + _CAPTION // 2 + _LINE), panel.note, font, width - 20)
    y = rows * step - _GAP + _CAPTION // 2
    if legend:
        _legend(pen, y, merging, canvas.width)
        y += _CAPTION
    _write(pen, (10, y), footer, _font([footer], canvas.width - 20), canvas.width - 20)
    return canvas


def _picture(pixels: NDArray[np.uint8], panel: Panel, grid: tuple[int, int], columns: int) -> Image.Image:
    rows, across = grid
    height, width = pixels.shape[1:]
    side = min(max(_WIDTH // columns, _SIDES[0]), _SIDES[1])
    # A whole number of pixels per patch, so that outlines lie on patch borders.
    cell = max(-(-side // max(rows, across)), height // rows, width // across)
    image = Image.fromarray(np.moveaxis(pixels, 0, -1)).resize((across * cell, rows * cell), Image.Resampling.BICUBIC)
    mask = np.zeros(grid, bool)
    mask.flat[panel.kept[panel.kept >= 0]] = True
    grey = Image.blend(Image.new("RGB", image.size), image.convert("L").convert("RGB"), _DIM)
    area = Image.fromarray(mask.repeat(cell, 0).repeat(cell, 1))
    result = Image.composite(image, grey, area)
    pen = ImageDraw.Draw(result)
    if not mask.all():
        _outline(pen, mask, cell)
    for index in panel.kept[panel.received & (panel.kept >= 0)]:
        row, column = divmod(int(index), across)
        _frame(pen, (column * cell, row * cell), cell)
    return result


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
                pen.line([float(value) for value in line], fill=KEPT, width=2)


def _frame(pen: ImageDraw.ImageDraw, corner: tuple[int, int], cell: int) -> None:
    """Draw a frame inside a patch, clear of the outline of the kept region."""
    x, y = corner
    inset, width = max(2, cell // 12), max(2, cell // 13)
    far = cell - 1 - inset
    # A dark seam on both sides lets it stand out from bright patches too.
    pen.rectangle((x + inset - 1, y + inset - 1, x + far + 1, y + far + 1), outline=_SEAM, width=width + 2)
    pen.rectangle((x + inset, y + inset, x + far, y + far), outline=MERGED, width=width)


def _legend(pen: ImageDraw.ImageDraw, middle: int, merging: bool, width: int) -> None:
    """Write what the outlines mean, in one line."""
    swatch = 20
    entries = ["kept", *(["others merged into it here"] if merging else []), "removed"]
    font = _font(["".join(entries)], width - 20 - len(entries) * (swatch + 40))
    x, y = 10, middle - swatch // 2
    for entry in entries:
        box = (x, y, x + swatch - 1, y + swatch - 1)
        pen.rectangle(box, fill=(70, 70, 70) if entry == "removed" else (200, 200, 200))
        if entry != "removed":
            pen.rectangle(box, outline=KEPT, width=2)
        if entry.startswith("others"):
            _frame(pen, (x, y), swatch)
        pen.text((x + swatch + 8, middle), entry, fill="black", font=font, anchor="lm")
        x += swatch + 8 + int(font.getlength(entry)) + 24


def _write(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, font: Font, width: int) -> None:
    """Write a line from its left middle on, cut where it is too long even for the smallest font."""
    if font.getlength(text) > width:
        while text and font.getlength(text + "...") > width:
            text = text[:-1]
        text += "..."
    pen.text(place, text, fill="black", font=font, anchor="lm")


def _font(texts: Sequence[str], width: int) -> Font:
    """Return the largest font in which every text fits, or the smallest."""
    for size in _FONTS:
        font = ImageFont.load_default(size)
        if all(font.getlength(text) <= width for text in texts):
            break
    return font
