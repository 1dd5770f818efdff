"""Grids and tiles of pictures against transformers' own image processors, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from whole_models import noise

from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.compiler.runtime.tile_rule import COVER, SHAPE, TileRule, covering, own_grids
from lmmprune.compiler.runtime.tiles import on_tiles
from lmmprune.errors import BundleError

# Square, wide, tall, smaller than a tile, nearly square, as large as a tile, one pixel more, very narrow.
SIZES = ((40, 40), (333, 100), (17, 60), (9, 5), (130, 131), (32, 32), (33, 32), (500, 7))


def steps(processor: Any, rule: TileRule, longest_edge: int | None = None) -> Preprocessor:
    return Preprocessor(
        resize=rule.side,
        resample=Image.Resampling(processor.resample),
        crop=None,
        rescale=processor.rescale_factor,
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        longest_edge=longest_edge,
        grids=rule,
    )


@pytest.mark.parametrize("longest_edge", [128, 100, 32, None])
def test_idefics3_covers_a_picture_with_tiles(longest_edge: int | None) -> None:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    theirs = Idefics3ImageProcessorPil(
        size={"longest_edge": longest_edge or 1},
        max_image_size={"longest_edge": 32},
        do_resize=longest_edge is not None,
    )
    grids = own_grids(COVER, longest_edge=longest_edge, side=32, least=1, most=1)
    assert len(grids) == {128: 7, 100: 7, 32: 1, None: 0}[longest_edge]
    grids = grids or [(rows, columns) for rows in range(1, 6) for columns in range(1, 12)]
    mine = steps(theirs, TileRule(rule=COVER, grids=tuple(grids), side=(32, 32)), longest_edge)
    for size in SIZES if longest_edge else SIZES[:6]:
        expected = theirs(noise(*size), return_row_col_info=True, return_tensors="np")
        picked = mine.pick(noise(*size))
        assert picked is not None
        # The processor calls one image a grid of no tiles.
        assert picked.grid == picked.own == (expected["rows"][0][0] or 1, expected["cols"][0][0] or 1)
        np.testing.assert_array_equal(mine(noise(*size)), expected["pixel_values"][0])


@pytest.mark.parametrize("limits", [(1, 12), (2, 5), (1, 1)])
@pytest.mark.parametrize("side", [(24, 24), (24, 32)])
def test_internvl_takes_the_nearest_shape(side: tuple[int, int], limits: tuple[int, int]) -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    least, most = limits
    theirs = GotOcr2ImageProcessorPil(
        size={"height": side[0], "width": side[1]}, crop_to_patches=True, min_patches=least, max_patches=most
    )
    grids = own_grids(SHAPE, longest_edge=None, side=side[0], least=least, most=most)
    # In which order they are listed decides nothing.
    mine = steps(theirs, TileRule(rule=SHAPE, grids=tuple(grids[::-1]), side=side, least=least, most=most))
    for size in SIZES:
        found = mine(noise(*size))
        picked = mine.pick(noise(*size))
        assert picked is not None
        assert picked.grid == picked.own
        np.testing.assert_array_equal(found, theirs(noise(*size), return_tensors="np")["pixel_values"])


def test_internvls_choice_among_a_few_is_the_processors_where_it_is_there() -> None:
    few = TileRule(rule=SHAPE, grids=((2, 2), (1, 1), (1, 3)), side=(24, 24), most=12)
    for width in range(1, 200, 7):
        picked = few.pick(width, 48)
        assert picked.grid in few.grids
        assert picked.own not in few.grids or picked.grid == picked.own


def test_what_isnt_there_goes_into_the_nearest_shape() -> None:
    rule = TileRule(rule=COVER, grids=((1, 1), (2, 2), (1, 3)), side=(32, 32))
    assert rule.pick(128, 128).own == (4, 4)
    # Of two squares the one with more tiles is nearer to sixteen.
    assert rule.pick(128, 128).grid == (2, 2)
    assert rule.pick(128, 40).grid == (1, 3)
    assert rule.pick(40, 128).grid == (2, 2)
    assert covering(65, 64, 32) == (3, 3)


def test_kept_tokens_lie_where_their_tile_does() -> None:
    """Two rows of three tiles of 2 x 2 patches: 4 x 6 patches, and an overview."""
    tiles = np.arange(24).reshape(2, 2, 3, 2).transpose(0, 2, 1, 3).reshape(-1)
    found = on_tiles(np.array([*range(24), 24, 27, -1]), (2, 2), (2, 3))
    assert found.tolist() == [*tiles.tolist(), -1, -1, -1]
    assert on_tiles(np.array([3, 0, -1]), (2, 2), (1, 1)).tolist() == [3, 0, -1]


GOOD: dict[str, Any] = {"rule": "shape", "grids": [[1, 1], [2, 2]], "side": [24, 24], "least": 1, "most": 12}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grids": []}, "'grids' has []"),
        ({"grids": [[0, 1]]}, "'grids' is 0"),
        ({"grids": [[1, 1, 1]]}, "expected 2 numbers"),
        ({"grids": [None]}, "'grids' is null"),
        ({"rule": "guess"}, "'grids' is"),
        ({"most": 65}, "'most' of 'grids' is 65"),
        ({"side": [24, 32]}, "'grids' beside"),
        ({"more": 1}, "'grids' is"),
    ],
)
def test_a_step_that_isnt_one_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    raw = {"resize": {"height": 24, "width": 24}, "resample": "bicubic", "crop": None, "rescale": 1, "mean": None}
    raw |= {"std": None, "grids": GOOD}
    file = tmp_path / "preprocessor.json"
    file.write_text(json.dumps(raw))
    assert Preprocessor.load(file).shape == (1, 3, 24, 24)
    file.write_text(json.dumps(raw | {"grids": GOOD | change}))
    with pytest.raises(BundleError) as refused:
        Preprocessor.load(file)
    assert message in str(refused.value)
