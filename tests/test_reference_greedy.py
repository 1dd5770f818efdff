"""The reference's greedy methods against set functions and determinants; DART, PriorTR and pooling by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lmmprune.compiler.verify.reference.chooser import Chooser
from lmmprune.compiler.verify.reference.cut import CutRefused
from lmmprune.compiler.verify.reference.dart import dart
from lmmprune.compiler.verify.reference.decoder_scores import prior_score
from lmmprune.compiler.verify.reference.downsample import downsample, pool
from lmmprune.compiler.verify.reference.encoded import Encoded, Tile
from lmmprune.compiler.verify.reference.greedy import cdpruner, dpp, mmtok, scope
from lmmprune.compiler.verify.reference.layer_attention import LayerAttention

N, WIDTH = 12, 16
SEEDS = range(4)


def rows(seed: int, count: int = N) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH))


def similar(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return torch.cosine_similarity(torch.from_numpy(x)[:, None], torch.from_numpy(y)[None], dim=-1).numpy()


def greedy(value: Callable[[list[int]], float], keep: int, chosen: list[int], n: int = N) -> list[int]:
    """Grow a set by what makes its value largest."""
    while len(chosen) < keep:
        values = {j: value([*chosen, j]) for j in range(n) if j not in chosen}
        chosen = [*chosen, max(values, key=values.__getitem__)]
    return sorted(chosen)


def volume(kernel: np.ndarray) -> Callable[[list[int]], float]:
    return lambda chosen: float(np.linalg.slogdet(kernel[np.ix_(chosen, chosen)])[1])


def picture(x: np.ndarray, attention: np.ndarray, *, cls: bool = True, columns: int = N, tiles: int = 1) -> Encoded:
    """Tokens [N,C] of one patch each, of some tiles that see the same attention."""
    look = LayerAttention(attention[None], attention[None], attention[None], attention[None])
    parts = [np.concatenate([x[:1]] * cls + [part]) for part in np.split(x, tiles)]
    squares = [[(tile, patch)] for tile in range(tiles) for patch in range(len(x) // tiles)]
    return Encoded(tiles=[Tile(y, [look], None) for y in parts], has_cls=cls, squares=squares, columns=columns)


@pytest.mark.parametrize("seed", SEEDS)
def test_dpp_makes_the_determinant_largest(seed: int) -> None:
    x = rows(seed)
    # The first one is a tie of all.
    expected = greedy(volume(similar(x, x)), 7, [0])
    assert dpp(x, 7, Chooser()) == expected
    assert dpp(x, 1, Chooser()) == [0]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("theta", [0.5, 0.8])
def test_cdpruner_makes_the_weighted_determinant_largest(seed: int, theta: float) -> None:
    x, text = rows(seed), rows(100 + seed, 5)
    near = similar(x, text.mean(axis=0, keepdims=True))[:, 0]
    w = np.exp(theta / (2 * (1 - theta)) * (near - near.min()) / np.ptp(near))
    assert cdpruner(x, text, 7, Chooser(), theta=theta) == greedy(volume(w[:, None] * similar(x, x) * w), 7, [])
    assert cdpruner(x, text, 7, Chooser(), theta=0.0) == dpp(x, 7, Chooser())


def test_behind_the_rank_the_lowest_places_follow() -> None:
    # 5 is 4 but for its length, and 1 lies in the plane of 0 and 4: two directions in all, then 1, 2, ...
    x = np.array([[1.0, 0], [1, 1], [2, 0], [0.9, 0.1], [0, 1], [0, 3]])
    chooser = Chooser()
    assert [dpp(x, keep, chooser) for keep in (2, 3, 4)] == [[0, 4], [0, 1, 4], [0, 1, 2, 4]]
    # No text is near anything, and nothing is near to nothing.
    assert cdpruner(np.zeros((3, 2)), np.zeros((2, 2)), 2, chooser) == [0, 1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("cls", [True, False])
def test_scope_adds_what_covers_most(seed: int, cls: bool) -> None:
    x, rng = rows(seed), np.random.default_rng(seed)
    attention = rng.dirichlet(np.ones(N + cls), N + cls)
    received = attention.sum(axis=0) - attention.diagonal()
    saliency = attention[0, 1:] if cls else received
    s = similar(x, x)

    def covered(chosen: list[int]) -> float:
        return sum(max([0.0, *s[u, chosen]]) for u in range(N))

    for alpha in (1.0, 0.5, 2.0):
        chosen: list[int] = []
        for _ in range(6):
            gains = [saliency[j] ** alpha * (covered([*chosen, j]) - covered(chosen)) for j in range(N)]
            chosen.append(max(set(range(N)) - {*chosen}, key=gains.__getitem__))
        assert scope(picture(x, attention, cls=cls), 6, Chooser(), alpha=alpha) == sorted(chosen)


@pytest.mark.parametrize("seed", SEEDS)
def test_mmtok_adds_what_covers_text_and_picture_most(seed: int) -> None:
    x, text = rows(seed), rows(100 + seed, 5)

    def reach(who: np.ndarray, temperature: float) -> np.ndarray:
        return torch.softmax(torch.from_numpy(similar(who, x)) / temperature, dim=1).numpy()

    for alpha, hot, warm in ((0.5, 0.02, 0.2), (2.0, 0.1, 0.5), (0.0, 0.1, 0.5)):
        of_text, of_vision = reach(text, hot), reach(x, warm)

        def value(chosen: list[int], alpha: float = alpha, t: np.ndarray = of_text, v: np.ndarray = of_vision) -> float:
            return float(t[:, chosen].max(axis=1).mean() + alpha * v[:, chosen].max(axis=1).mean())

        options = {"alpha": alpha, "text_temperature": hot, "vision_temperature": warm}
        # Alone the text's five tokens are covered by five; from then on nothing adds to it.
        keep = 7 if alpha else 3
        assert mmtok(x, text, keep, Chooser(), **options) == greedy(value, keep, [])


def test_dart_by_hand() -> None:
    # A word, seven visual tokens, then two words; their lengths and degrees.
    lengths, degrees = [9.0, 1, 5, 2, 4, 3, 1, 1, 3, 7], [0.0, 10, 0, 30, 92, 180, 60, 100, 0, 45]
    turned = np.radians(degrees)
    x = np.stack([lengths * np.cos(turned), lengths * np.sin(turned)], axis=1)
    visual, text = list(range(1, 8)), [8, 9]

    def kept(keep: int, image_pivots: int, text_pivots: int) -> list[int]:
        how = {"image_pivots": image_pivots, "text_pivots": text_pivots}
        return dart(x, visual, text, np.array(lengths), keep, Chooser(), **how)

    # Pivots are the visual tokens 1 (0 degrees) and 3 (92 degrees), by length, then the word at 45 degrees.
    assert kept(1, 2, 1) == [1]
    assert kept(2, 2, 1) == [1, 3]
    # One more is the first pivot's: 180 degrees (4) are farthest from 0.
    assert kept(3, 2, 1) == [1, 3, 4]
    # The second of two more is the middle one's: 10 degrees (0) are farthest from 92.
    assert kept(4, 2, 1) == [0, 1, 3, 4]
    # One for each: 180 (4) of 0, then 10 (0) of 92, then 100 (6) of 45.
    assert kept(5, 2, 1) == [0, 1, 3, 4, 6]
    # The words alone, by length.
    assert kept(1, 0, 1) == [4]
    assert kept(2, 0, 2) == [4, 6]
    # There are two: the last is asked again, and 92 degrees (3) are what is left for it.
    assert kept(3, 0, 3) == [3, 4, 6]


def test_priortr_by_hand() -> None:
    # Two visual tokens (rows 0, 1) and a text of two (rows 2, 3).
    a = np.array([[[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.3, 0.1, 0.6, 0], [0.1, 0.5, 0.2, 0.2]]])
    score, scale = prior_score(LayerAttention(a, a, a, a), [0, 1], [2, 3])
    # P = (0.2, 0.3) / 0.5 and Q = (0.3, 0.1) / 0.4.
    assert score == pytest.approx({0: 0.4 * np.log(0.4 / 0.75), 1: 0.6 * np.log(0.6 / 0.25)})
    assert scale == pytest.approx({0: 0.4, 1: 0.6})


@pytest.mark.parametrize(("grid", "keep", "shape"), [((4, 4), 4, (2, 2)), ((6, 6), 9, (3, 3)), ((4, 6), 6, (2, 3))])
def test_downsample_is_average_pooling(grid: tuple[int, int], keep: int, shape: tuple[int, int]) -> None:
    x = rows(0, grid[0] * grid[1])
    whole = torch.from_numpy(x).T.reshape(1, WIDTH, *grid)
    expected = torch.nn.functional.adaptive_avg_pool2d(whole, shape)[0].flatten(1).T
    tokens, places = pool(x, grid[1], keep)
    np.testing.assert_allclose(tokens, expected.numpy())
    high, wide = grid[0] // shape[0], grid[1] // shape[1]
    middles = [(i * high + high // 2, j * wide + wide // 2) for i in range(shape[0]) for j in range(shape[1])]
    assert places == [row * grid[1] + column for row, column in middles]


def test_downsample_by_parts_of_patches() -> None:
    # A row of three patches becomes two windows of one and a half.
    tokens, places = pool(np.array([[1.0], [2.0], [6.0]]), 3, 2)
    np.testing.assert_allclose(tokens[:, 0], [(1 + 2 / 2) / 1.5, (2 / 2 + 6) / 1.5])
    assert places == [0, 2]
    # Five of 3 x 3: two rows of two and three windows, each of one and a half rows.
    x = np.arange(9.0)[:, None]
    tokens, places = pool(x, 3, 5)
    assert places == [0, 2, 6, 7, 8]
    top = [(0 + 3 / 2) / 1.5, (1 + 4 / 2) / 1.5, (2 + 5 / 2) / 1.5]
    bottom = [(3 / 2 + 6) / 1.5, (4 / 2 + 7) / 1.5, (5 / 2 + 8) / 1.5]
    np.testing.assert_allclose(tokens[:, 0], [(top[0] + top[1] / 2) / 1.5, (top[1] / 2 + top[2]) / 1.5, *bottom])


def test_downsample_shares_tokens_among_tiles() -> None:
    x = np.arange(8.0)[:, None]
    e = picture(x, np.zeros((5, 5)), columns=2, tiles=2)
    # One token of the first tile (patches 0 to 3), two of the second: its two columns.
    tokens, places = downsample(e, 3)
    assert places == [3, 6, 7]
    np.testing.assert_allclose(tokens[:, 0], [1.5, 5, 6])
    with pytest.raises(CutRefused, match="a token of each of 2 tiles, not 1"):
        downsample(e, 1)
