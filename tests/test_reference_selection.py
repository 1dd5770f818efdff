"""What the reference keeps and merges behind and inside the encoder, on cases small enough to compute by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lmmprune.compiler.verify.reference import bipartite, visionzip
from lmmprune.compiler.verify.reference.chooser import Chooser
from lmmprune.compiler.verify.reference.encoded import Encoded, Tile
from lmmprune.compiler.verify.reference.layer_attention import LayerAttention
from lmmprune.compiler.verify.reference.prumerge import choose
from lmmprune.compiler.verify.reference.select import divprune, freepruner, knee_count, vispruner


def test_prumerge_order() -> None:
    a = dict(enumerate([0.1, 0.3, 0.05, 0.2, 0.15, 0.02, 0.01, 0.03]))
    assert choose(Chooser(), a, 4, None) == [1, 3, 4]
    # Half of 4 by attention (1, 3); the grid of 2 in 8 are places 0 and 4.
    assert choose(Chooser(), a, 5, 0.5) == [1, 3, 0, 4]
    assert choose(Chooser(), a, 5, 0.25) == [1, 0, 2, 5]
    # The grid of 3 in 8 (0, 2, 5) has one that is important already: the best of the others takes its place.
    assert choose(Chooser(), {**a, 2: 0.9}, 5, 0.25) == [2, 0, 5, 1]


@pytest.mark.parametrize(
    ("rest", "targets", "places"), [(10, 3, [0, 3, 6]), (7, 4, [0, 1, 2, 3]), (3, 3, [0, 1, 2]), (9, 0, [])]
)
def test_visionzip_targets(rest: int, targets: int, places: list[int]) -> None:
    assert visionzip.target_places(rest, targets) == places


def angles(*degrees: float) -> np.ndarray:
    return np.stack([[np.cos(np.radians(d)), np.sin(np.radians(d))] for d in degrees])


def test_tome_pairs_and_sizes() -> None:
    keys = angles(0, 50, 90, 4)
    # With CLS the odd places look for a partner: 3 finds 0 at 4 degrees, 1 finds 2 at 40.
    assert bipartite.tome_edges(Chooser(), keys, 3, has_cls=True) == ({3: 0}, [1, 0, 2])
    assert bipartite.tome_edges(Chooser(), keys, 2, has_cls=True) == ({3: 0, 1: 2}, [0, 2])
    assert bipartite.tome_edges(Chooser(), keys, 2, has_cls=False) == ({0: 3, 2: 1}, [1, 3])
    # 0 finds 3 at 3 degrees; of those that stay, 4 (4 degrees from 1) comes before 2 (40 degrees).
    assert bipartite.tome_edges(Chooser(), angles(0, 50, 90, 3, 46), 4, has_cls=False) == ({0: 3}, [4, 2, 1, 3])
    with pytest.raises(ValueError, match="3 edges wanted"):
        bipartite.tome_edges(Chooser(), keys, 1, has_cls=True)
    rows, sizes = np.array([[1.0], [2.0], [6.0], [9.0]]), [1.0, 2.0, 3.0, 1.0]
    merged = bipartite.merge_into(rows, sizes, {0: 1, 2: 1}, [3, 1])
    np.testing.assert_allclose(merged[:, 0], [9, (1 + 4 + 18) / 6])
    assert bipartite.merge_sizes(sizes, {0: 1, 2: 1}, [3, 1]) == [1.0, 6.0]


def test_aim_merges_in_rounds() -> None:
    # Round one: 0, 2, 4 look for a partner among 1, 3; of three at most two merge. Round two merges what is left.
    features, keys = np.array([[1.0], [3.0], [10.0], [20.0], [5.0]]), angles(0, 2, 80, 90, 45)
    merged, places = bipartite.aim_rounds(Chooser(), features, keys, 3)
    assert places == [1, 3, 4]
    np.testing.assert_allclose(merged[:, 0], [2, 15, 5])
    # The list is 4, 1, 3 now, with keys at 45, 1 and 85 degrees: 4 and 3 look for a partner, and 4 is nearer to 1.
    merged, places = bipartite.aim_rounds(Chooser(), features, keys, 2)
    assert places == [1, 3]
    np.testing.assert_allclose(merged[:, 0], [3, 15])


def test_divprune_spreads() -> None:
    # The loneliest is at 90; then 0 (farthest from it), then 45.
    assert divprune(angles(3, 0, 45, 90, 47), 1, Chooser()) == [3]
    assert divprune(angles(3, 0, 45, 90, 47), 2, Chooser()) == [1, 3]
    assert divprune(angles(3, 0, 45, 90, 47), 3, Chooser()) == [1, 2, 3]


def test_knee() -> None:
    assert knee_count([0.1, 1.0, 0.0, 0.2], Chooser()) == 2
    assert knee_count([1.0, 0.9, 0.8, 0.1, 0.0], Chooser()) == 4  # 0.15 below; above the chord it was 0.3
    assert knee_count([3.0, 2.0, 1.0], Chooser()) == 1  # a straight line: the lower index


def encoded(x: np.ndarray, attention: np.ndarray, keys: np.ndarray) -> Encoded:
    """One layer, one head; CLS is row 0 of the attention and has the zero vector for a feature and a key."""
    cls = np.zeros((1, x.shape[1]))
    k = np.concatenate([np.zeros((1, keys.shape[1])), keys])[None]
    tile = Tile(y=np.concatenate([cls, x]), looks=[LayerAttention(k, k, attention[None], attention[None])], behind=None)
    return Encoded(tiles=[tile], has_cls=True, squares=[[(0, patch)] for patch in range(len(x))], columns=len(x))


def cls_looks_at(*weights: float) -> np.ndarray:
    attention = np.full((len(weights) + 1, len(weights) + 1), 0.1)
    attention[0, 1:] = weights
    return attention


def test_visionzip_by_hand() -> None:
    x = np.arange(6.0)[:, None] + 1
    e = encoded(x, cls_looks_at(0.1, 0.2, 0.9, 0.3, 0.1, 0.1), angles(0, 10, 20, 80, 70, 30))
    # D = 2: CLS and patch 2. The rest 0 1 3 4 5 with step 2: targets 0 and 3; 1 and 5 join 0, 4 joins 3.
    rows, places = visionzip.visionzip(e, 4, Chooser(), dominant_fraction=0.5)
    assert places == [-1, 2, 0, 3]
    np.testing.assert_allclose(rows[:, 0], [0, 3, 1 + (2 + 6) / 2, 4 + 5])
    rows, places = visionzip.visionzip(e, 1, Chooser())
    assert places == [-1]


def test_vispruner_by_hand() -> None:
    e = encoded(angles(0, 12, 45, 90, 85, 20), cls_looks_at(0.12, 0.2, 0.9, 0.3, 0.1, 0.11), angles(*[0] * 6))
    # Patch 2 is important. Of the others 3 1 0 5 4, a = 3 0 4 and b = 1 5: 0 is 12 degrees from b, 4 is 65, 3 is 70.
    assert vispruner(e, 4, Chooser(), important_fraction=0.25) == [2, 3, 1, 5]
    assert vispruner(e, 3, Chooser(), important_fraction=0.6) == [2, 1, 5]
    # One left to find: all of a goes, then of 1 5 the first.
    assert vispruner(e, 2, Chooser(), important_fraction=0.5) == [2, 5]
    assert vispruner(e, 2, Chooser(), important_fraction=1.0) == [2, 3]
    # None is important; of a = 2 1 5 and b = 3 0 4, 1 (12 degrees) and 5 (20) go.
    assert vispruner(e, 4, Chooser(), important_fraction=0.2) == [2, 3, 0, 4]


def test_vispruner_keeps_the_order_of_similarity() -> None:
    # Patches j at j^2 / 5 degrees, of which CLS looks most at the first ones: each is nearest to the one before.
    # Round one of 21: a = 0 2 4 .. 20, nearest first 0 2 .. 14 go, and 16 18 20 are left before b = 1 3 .. 19.
    e = encoded(angles(*(j * j / 5 for j in range(21))), cls_looks_at(*range(21, 0, -1)), angles(*[0] * 21))
    assert vispruner(e, 13, Chooser(), important_fraction=0) == [16, 18, 20, *range(1, 20, 2)]
    # Round two of 13: a = 16 20 3 7 11 15 19 and b = 18 1 5 9 13 17. Degrees to the nearest of b: 1.6 of 3, which goes,
    # then 4.8 of 7, 6.6 of 16, 7.4 of 19, 8 of 11, 11.2 of 15 and 15.2 of 20.
    assert vispruner(e, 12, Chooser(), important_fraction=0) == [7, 16, 19, 11, 15, 20, 18, 1, 5, 9, 13, 17]


def test_freepruner_doesnt_count_what_a_patch_sees_of_itself() -> None:
    attention = np.full((4, 4), 0.1)
    attention[1, 1], attention[3, 2], attention[2, 1] = 0.9, 0.5, 0.2
    e = encoded(np.eye(3), attention, np.eye(3))
    assert freepruner(e, 1, Chooser(), pivot_fraction=1.0, shallow_layer=0) == [1]
    # Half of 2 is one pivot; what that pivot (row 2) looks at most comes next.
    assert freepruner(e, 2, Chooser(), pivot_fraction=0.5, shallow_layer=0) == [1, 0]
