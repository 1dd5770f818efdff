"""Cut a picture into tiles, bit for bit as transformers' 'anyres' image processors do, with pillow."""

from __future__ import annotations

import math

from PIL import Image


def letterbox(picture: Image.Image, height: int, width: int, resample: Image.Resampling) -> Image.Image:
    """Scale an RGB picture to fit into so many pixels, and pad it with black on both sides."""
    across, down = width / picture.width, height / picture.height
    if across < down:
        size = (width, min(math.ceil(picture.height * across), height))
    else:
        size = (min(math.ceil(picture.width * down), width), height)
    canvas = Image.new("RGB", (width, height))
    # The odd pixel of padding stays behind.
    canvas.paste(picture.resize(size, resample=resample), ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


def cut(picture: Image.Image, rows: int, columns: int) -> list[Image.Image]:
    """Cut a picture whose sides they divide into equal tiles, row by row."""
    height, width = picture.height // rows, picture.width // columns
    return [
        picture.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))
        for row in range(rows)
        for column in range(columns)
    ]
