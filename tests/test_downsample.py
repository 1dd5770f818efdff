"""Down-sampling: tokens are means over equal rectangles, as many as were asked for, each at the place of its middle."""

from __future__ import annotations

import numpy as np
import pytest
from cuts import prune_tower
from towers import Tower, run

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.methods import METHODS
from lmmprune.passes.methods.downsample import pooling

GRIDS = [(12, 12), (24, 24), (3, 4), (5, 1), (1, 7), (27, 27), (7, 16)]


def windows(grid: tuple[int, int], count: int) -> list[tuple[int, int, int, int]]:
    """Return (band, bands, column, columns) of every window, by the page."""
    rows, columns = grid
    bands = int(np.floor(np.sqrt(count * rows / columns) + 0.5))
    bands = min(max(bands, -(-count // columns)), rows, count)
    found = []
    for band in range(bands):
        across = (band + 1) * count // bands - band * count // bands
        found += [(band, bands, column, across) for column in range(across)]
    return found


def average(image: np.ndarray, window: tuple[int, int, int, int]) -> float:
    """Return the mean over a window of a picture in which every pixel is repeated until windows hold whole ones."""
    band, bands, column, columns = window
    fine = np.repeat(np.repeat(image, bands, axis=0), columns, axis=1)
    (height, width) = image.shape
    return float(fine[band * height : (band + 1) * height, column * width : (column + 1) * width].mean())


@pytest.mark.parametrize("grid", GRIDS)
def test_tokens_are_means_over_rectangles(grid: tuple[int, int]) -> None:
    image = np.random.default_rng(0).standard_normal(grid)
    size = grid[0] * grid[1]
    for count in sorted({1, 2, 3, size // 10 or 1, size // 4 or 1, size // 2, size - 1}):
        weights, middles = pooling(grid, count)
        expected = windows(grid, count)
        assert len(expected) == len(middles) == count
        np.testing.assert_allclose(weights @ image.reshape(-1), [average(image, window) for window in expected])
        centres = [
            int((band + 0.5) * grid[0] / bands) * grid[1] + int((column + 0.5) * grid[1] / columns)
            for band, bands, column, columns in expected
        ]
        assert middles.tolist() == centres == sorted(set(centres))


def test_whole_windows_are_average_pooling() -> None:
    import torch

    image = np.random.default_rng(0).standard_normal((24, 12))
    weights, _ = pooling((24, 12), 32)
    pooled = torch.nn.functional.avg_pool2d(torch.from_numpy(image)[None], (3, 3))
    np.testing.assert_allclose(weights @ image.reshape(-1), pooled.numpy().reshape(-1))


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9])
def test_a_graph_pools_every_picture(ratio: float) -> None:
    tower = Tower(batch=2, patches=12)
    keep = 12 - round(ratio * 12)
    model = tower.graph()
    assert prune_tower(model, tower, "downsample", keep)
    found = run(model, {"pixel_values": tower.inputs()})
    weights, middles = pooling(tower.grid, keep)
    _, hidden = tower.forward()
    np.testing.assert_allclose(found["image_features"], tower.project(weights @ hidden[:, 1:]), rtol=1e-4, atol=1e-4)
    assert found["kept_indices"].tolist() == [middles.tolist()] * 2
    assert found["received.vision_output"].tolist() == [[1] * keep] * 2


def test_each_tile_gets_a_token() -> None:
    facts = Facts(tokens=18, grid=(2, 2), encoder_layers=2, decoder_layers=2, has_cls=True, tiles=4, separators=2)
    method = METHODS["downsample"]()
    assert [stage.keep for stage in method.plan(facts, 6)] == [6]
    with pytest.raises(InputError, match="leaves a token of each tile: keep 6 or more"):
        method.plan(facts, 5)
