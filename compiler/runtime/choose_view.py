"""Which of a bundle's sizes, or grids of tiles, a picture takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from lmmprune.compiler.bundle.interface import Interface, View


def choose_view(interface: Interface, image: Image.Image) -> View | None:
    """Return what a picture takes of what a bundle was exported for; None: there is one.

    Args:
        interface: The bundle's.
        image: Upright, as ``load_image`` gives it.
    """
    if not interface.sizes:
        return None
    if interface.tiles is None:
        return nearest_size(interface.sizes, image.height, image.width)
    return best_grid(interface.sizes, image.height, image.width)


def nearest_size(sizes: Sequence[View], height: int, width: int) -> View:
    """Return the size that a picture is nearest to in shape and area alike.

    The picture is first thought scaled, in its own shape, into the areas from the smallest to the largest of the sizes:
    as the models' own processors do between ``min_pixels`` and ``max_pixels``. Then ``ln(h/H)^2 + ln(w/W)^2`` is least,
    which is half of ``ln((w/h) / (W/H))^2 + ln((w h) / (W H))^2``: twice the shape is as far as twice the area [ours].
    Of equally near ones the first counts. A picture of an exported size takes that one.
    """
    areas = [view.pixels[0] * view.pixels[1] for view in sizes]
    area = height * width
    scale = math.sqrt(min(max(area, min(areas)), max(areas)) / area)

    def distance(view: View) -> float:
        high, wide = view.pixels
        # Rounded, so that sizes that are equally far on paper are so in floating point.
        return round(math.log(scale * height / high) ** 2 + math.log(scale * width / wide) ** 2, 9)

    return min(sizes, key=distance)


def best_grid(grids: Sequence[View], height: int, width: int) -> View:
    """Return the grid of tiles that transformers' 'anyres' processors would choose among these.

    A picture is scaled to fit inside; the grid that shows the most of the picture's own pixels wins, of equal ones that
    with the fewest pixels left over, of still equal ones the first.
    """

    def merit(view: View) -> tuple[int, int]:
        rows, columns = view.tiles or (1, 1)
        high, wide = rows * view.pixels[0], columns * view.pixels[1]
        scale = min(wide / width, high / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, -(wide * high - shown)

    return max(grids, key=merit)
