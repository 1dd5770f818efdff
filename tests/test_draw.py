from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lmmprune.compiler.runtime.draw import KEPT, MERGED, Panel, draw_panels, evenly


def mean(drawing: np.ndarray, row: int, column: int, cell: int) -> np.ndarray:
    inner = drawing[row * cell + 8 : (row + 1) * cell - 8, column * cell + 8 : (column + 1) * cell - 8]
    return inner.reshape(-1, 3).mean(0)


def panel(kept: object, received: object = (), caption: str = "caption", note: str = "") -> Panel:
    places = np.array(kept, np.int64)
    return Panel(kept=places, received=np.isin(places, np.array(received, np.int64)), caption=caption, note=note)


def count(image: Image.Image | np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(image) == colour).all(-1).sum())


def test_kept_patches_stay_and_removed_ones_are_dark_and_grey() -> None:
    pixels = np.empty((3, 24, 32), np.uint8)
    pixels[:] = np.array([200, 100, 40])[:, None, None]
    image = draw_panels(pixels, [panel([0, 5, 11], caption="12 -> 3")], (3, 4))
    cell = image.width // 4
    assert image.width >= 672
    drawing = np.asarray(image)
    for index in range(12):
        colour = mean(drawing, *divmod(index, 4), cell)
        if index in (0, 5, 11):
            np.testing.assert_allclose(colour, [200, 100, 40], atol=2)
        else:
            assert np.ptp(colour) < 2, "removed patches are grey"
            assert colour.max() < 80, "removed patches are dark"
    caption = drawing[cell * 3 :]
    assert caption.shape[0] == 40, "nothing else is below the picture"
    assert caption.min() < 50, "the caption is written"
    assert tuple(drawing[cell // 2, cell - 1]) == KEPT, "kept regions are outlined"


def test_everything_kept_is_the_picture_without_lines() -> None:
    pixels = np.full((3, 16, 16), 77, np.uint8)
    image = draw_panels(pixels, [panel(range(4))], (2, 2))
    assert (np.asarray(image)[: image.width] == 77).all()


@pytest.mark.parametrize("where", ["caption", "note", "footer"])
def test_long_lines_fit(where: str) -> None:
    pixels = np.full((3, 16, 16), 77, np.uint8)
    text = {"caption": "", "note": "", "footer": ""} | {where: "a long line " * 40}
    image = draw_panels(pixels, [panel([0], [0], text["caption"], text["note"])], (2, 2), text["footer"])
    assert (np.asarray(image)[image.width :, -8:] == 255).all()
    assert np.asarray(image)[image.width :].min() < 50


def test_patches_that_took_in_others_have_a_frame_and_a_legend() -> None:
    pixels = np.full((3, 24, 24), 240, np.uint8)
    plain = draw_panels(pixels, [panel([-1, 1, 4])], (3, 3))
    image = draw_panels(pixels, [panel([-1, 1, 4], [-1, 4])], (3, 3))
    assert count(plain, MERGED) == 0
    cell, drawing = image.width // 3, np.asarray(image)
    assert count(drawing[cell : 2 * cell, cell : 2 * cell], MERGED) > 2 * cell, "the patch that took in others"
    assert count(drawing[: 3 * cell], MERGED) == count(drawing[cell : 2 * cell, cell : 2 * cell], MERGED), "no other"
    np.testing.assert_array_equal(drawing[:cell], np.asarray(plain)[:cell])
    assert image.height > plain.height
    assert count(drawing[3 * cell :], MERGED), "the legend shows it"


def test_colours_differ_for_every_kind_of_colour_blindness() -> None:
    # What a missing kind of cone makes of linear colours: Machado et al., 2009, severity 1.
    kinds = {
        "protanopia": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        "deuteranopia": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.01182, 0.04294, 0.968881],
        ],
        "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
    }
    kept, merged = ((np.array(colour) / 255) ** 2.2 for colour in (KEPT, MERGED))
    for kind, matrix in kinds.items():
        difference = np.abs(np.clip(np.array(matrix) @ kept, 0, 1) - np.clip(np.array(matrix) @ merged, 0, 1))
        assert difference.max() > 0.4, kind


@pytest.mark.parametrize(("panels", "across", "down"), [(1, 1, 1), (2, 2, 1), (4, 4, 1), (5, 3, 2), (8, 4, 2)])
def test_panels_wrap_at_four_per_row(panels: int, across: int, down: int) -> None:
    pixels = np.full((3, 16, 16), 120, np.uint8)
    image = draw_panels(pixels, [panel([0, 3], caption=f"site_{index}") for index in range(panels)], (2, 2))
    assert image.width > image.height if across > down else image.width < image.height
    side = (image.width - (across - 1) * 16) // across
    assert 384 <= side <= 672
    drawing = np.asarray(image)
    for index in range(panels):
        row, column = divmod(index, across)
        x, y = column * (side + 16), row * (side + 40 + 16)
        np.testing.assert_array_equal(drawing[y + 20, x + 20], 120)
        assert drawing[y + 20, x + side // 2 + 20].max() < 80
        assert drawing[y + side : y + side + 40, x : x + side].min() < 50, "its caption"
    assert image.height == down * (side + 40) + (down - 1) * 16 + (40 if panels > 1 else 0)


def test_evenly() -> None:
    names = [f"site_{index}" for index in range(28)]
    chosen = evenly(names)
    assert len(chosen) == 8
    assert (chosen[0], chosen[-1]) == (names[0], names[-1])
    steps = np.diff([names.index(name) for name in chosen])
    assert set(steps.tolist()) <= {3, 4}
    assert evenly(names[:8]) == names[:8]
    assert len(set(evenly(names[:9]))) == 8
