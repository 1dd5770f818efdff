from __future__ import annotations

import numpy as np

from lmmprune.compiler.draw import draw_kept


def mean(drawing: np.ndarray, row: int, column: int, cell: int) -> np.ndarray:
    inner = drawing[row * cell + 8 : (row + 1) * cell - 8, column * cell + 8 : (column + 1) * cell - 8]
    return inner.reshape(-1, 3).mean(0)


def test_kept_patches_stay_and_dropped_ones_are_dark_and_grey() -> None:
    pixels = np.empty((3, 24, 32), np.uint8)
    pixels[:] = np.array([200, 100, 40])[:, None, None]
    image = draw_kept(pixels, np.array([0, 5, 11]), (3, 4), "12 -> 3")
    cell = image.width // 4
    assert image.width >= 672
    drawing = np.asarray(image)
    for index in range(12):
        colour = mean(drawing, *divmod(index, 4), cell)
        if index in (0, 5, 11):
            np.testing.assert_allclose(colour, [200, 100, 40], atol=2)
        else:
            assert np.ptp(colour) < 2, "dropped patches are grey"
            assert colour.max() < 80, "dropped patches are dark"
    caption = drawing[cell * 3 :]
    assert caption.shape[0] > 20
    assert caption.min() < 50, "the caption is written"
    assert tuple(drawing[cell // 2, cell - 1]) == (255, 176, 0), "kept regions are outlined"


def test_everything_kept_is_the_picture_without_lines() -> None:
    pixels = np.full((3, 16, 16), 77, np.uint8)
    image = draw_kept(pixels, np.arange(4), (2, 2), "4 -> 4")
    assert (np.asarray(image)[: image.width] == 77).all()


def test_long_captions_fit() -> None:
    pixels = np.full((3, 16, 16), 77, np.uint8)
    image = draw_kept(pixels, np.arange(4), (2, 2), "caption " * 12)
    assert (np.asarray(image)[image.width :, -8:] == 255).all()
