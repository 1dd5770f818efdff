"""The reference's rules on cases small enough to compute by hand, and that it shares nothing with the passes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lmmprune.compiler.verify import reference
from lmmprune.compiler.verify.reference import SITES, CutRefused, bipartite, ficoco, rule_options, visionzip
from lmmprune.compiler.verify.reference.chooser import Chooser
from lmmprune.compiler.verify.reference.decoder_scores import page_rank, raters
from lmmprune.compiler.verify.reference.encoded import Encoded, Tile
from lmmprune.compiler.verify.reference.layer_attention import LayerAttention
from lmmprune.compiler.verify.reference.options import SCHEDULE
from lmmprune.compiler.verify.reference.prumerge import choose
from lmmprune.compiler.verify.reference.select import divprune, freepruner, knee_count, vispruner
from lmmprune.compiler.verify.reference.sequence import Position, Token, places, sequence
from lmmprune.passes.methods import METHODS


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            # Of ``from a import b``, b may be a module too.
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_it_shares_no_code_with_the_passes() -> None:
    files = sorted(Path(reference.__file__).parent.rglob("*.py"))
    assert len(files) > 15
    mine = {name for file in files for name in imports(file) if name.split(".")[0] in ("lmmprune", "passes")}
    foreign = {name for name in mine if not name.startswith("lmmprune.compiler.verify.reference")}
    # Where a model's weights come from, and whether they fit into this machine, is no matter of pruning.
    assert foreign == {"lmmprune.models.source.Source", "lmmprune.compiler.targets.machine"}


def test_options_of_a_rule() -> None:
    own = {"lambda_": 0.3, "eps": 0.9, "window": 2, "coefficient": 2.0, "first_layer": 12}
    assert rule_options("ficoco-v", own, 23) == {"lambda_": 0.3, "eps": 0.9, "window": 2, "coefficient": 2.0}
    for depth, layer in ((23, 16), (5, 3), (1, 0)):
        assert rule_options("vtc-cls", {"first_layer": 16}, depth) == {"first_layer": layer}
    assert rule_options("vtc-cls", {"first_layer": 22}, 5) == {"first_layer": 4}
    assert rule_options("fastv", {"layer": 2}, 23) == {}
    with pytest.raises(CutRefused, match="fastv has no option 'prune_text' here"):
        rule_options("fastv", {"layer": 2, "prune_text": 1}, 23)


def test_every_option_of_a_method_is_known() -> None:
    assert METHODS.keys() == SITES.keys()
    for name, method in METHODS.items():
        options = rule_options(name, method().parameters, 23)
        # What isn't passed on says where is cut, or how many stay.
        assert {*method().parameters} - {*options} <= {*SCHEDULE}


def test_numbers_of_the_sequence() -> None:
    def numbers(policy: str) -> list[int]:
        return [t.position for t in sequence(2, np.array([1, 5]), [9], [9, 9], [9], policy, 6)]

    assert numbers("contiguous") == [0, 1, 2, 3, 4, 5]
    assert numbers("original") == [0, 2, 6, 7, 8, 9]


def test_a_token_without_a_place_has_the_first_places_number() -> None:
    kept = np.array([-1, 0, 5, -1])

    def numbers(tokens: list[Token]) -> list[Position]:
        return [token.position for token in tokens]

    assert numbers(sequence(4, kept, [9], [9], [9], "original", 6)) == [0, 1, 1, 6, 1, 7, 8]
    assert numbers(sequence(4, kept, [9], [9], [9], "contiguous", 6)) == [0, 1, 2, 3, 4, 5, 6]
    spots = numbers(places(4, kept, [9], [9], [9], (2, 3)))
    assert spots == [(0,) * 3, (1, 1, 1), (1, 1, 1), (1, 2, 3), (1, 1, 1), (4,) * 3, (5,) * 3]


def test_local_penalty() -> None:
    # 0 1 .      windows of the 3x3 grid: 0 1 3 4 | 2 5
    # . 4 5                               6 7     | 8
    # . 7 8
    s = [0.5, -1.0, 0.25, 0.2, -0.6, -0.4]
    size = dict.fromkeys(range(6), 1.0)
    assert ficoco.penalize(Chooser(), s, size, [0, 1, 4, 5, 7, 8], columns=3) == [1.0, -1.0, 0.25, 0.4, -0.3, -0.2]
    # Windows of one row and column: all of them.
    assert ficoco.penalize(Chooser(), s[:2], size, [0, 1], columns=3, window=1, coefficient=4.0) == [2.0, -0.25]
    # On a tie only the lower index is penalized.
    assert ficoco.penalize(Chooser(), [0.5, 0.5], size, [0, 1], columns=2) == [1.0, 0.5]


def test_targets_lie_above_the_quantile() -> None:
    assert {ficoco.target_count(n, 0.998) for n in range(502, 578)} == {2}
    assert {ficoco.target_count(n, 0.998) for n in range(1, 502)} == {1}
    for n in (2, 10, 300, 502, 577):
        row = np.random.default_rng(n).random(n)
        assert ficoco.target_count(n, 0.998) == (row >= np.quantile(row, 0.998)).sum()


def test_merge_by_hand() -> None:
    w = ficoco.weights(Chooser(), {1: {0: 0.6, 2: 0.3, 3: 0.1}}, eps=0.4)
    assert w == {1: {0: pytest.approx(2 / 3), 2: pytest.approx(1 / 3)}}
    merged = ficoco.merge(np.array([[1.0], [4.0], [2.0], [7.0]]), [0, 2, 3], w)
    np.testing.assert_allclose(merged[:, 0], [(1 + 8 / 3) / (5 / 3), (2 + 4 / 3) / (4 / 3), 7])


def test_redundancy_of_the_encoder_by_hand() -> None:
    logits = np.array([[[0.0, 8, 6], [0, 2, 4], [0, 4, 4]]])  # of the patches row means 3 and 4, of norm 5
    attention = np.array([[[0.5, 0.2, 0.3], [0.6, 0.1, 0.3], [0.2, 0.4, 0.4]]])
    keys = np.array([[[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]]])  # the patches' both at 45 degrees of their mean
    look = LayerAttention(keys, keys, logits, attention)
    s, _ = ficoco.vision_redundancy(look, cls=True, lambda_=0.25)
    np.testing.assert_allclose(s, [0.25 * (0.1 + 0.3) / 2 - 0.75 * 0.2, 0.25 * (0.4 + 0.4) / 2 - 0.75 * 0.3])
    s, _ = ficoco.vision_redundancy(look, cls=True, lambda_=0.25, score="logits")
    np.testing.assert_allclose(s, [0.25 * 0.6 - 0.75 * 0.8, 0.25 * 0.8 - 0.75 * 0.6])
    # Without CLS v = -1/sqrt(2) each, and a row's attention sums to one.
    alone = LayerAttention(keys[:, 1:], keys[:, 1:], logits[:, 1:, 1:], np.array([[[0.3, 0.7], [0.9, 0.1]]]))
    s, _ = ficoco.vision_redundancy(alone, cls=False, lambda_=0.25)
    np.testing.assert_allclose(s, [0.25 / 2 + 0.75 * 0.5**0.5] * 2)
    s, _ = ficoco.vision_redundancy(alone, cls=False, lambda_=0.25, score="logits")
    np.testing.assert_allclose(s, [0.15 + 0.75 * 0.5**0.5, 0.2 + 0.75 * 0.5**0.5])
    with pytest.raises(CutRefused, match="no score 'keys'"):
        ficoco.vision_redundancy(look, cls=True, score="keys")


def test_where_dropped_patches_go() -> None:
    attention = np.array([[[0.5, 0.2, 0.3], [0.6, 0.1, 0.3], [0.2, 0.4, 0.4]]])
    look = LayerAttention(attention, attention, np.log(attention), attention)
    assert ficoco.vision_correlation(look, kept=[1], gone=[0], cls=True) == {0: {1: 0.3}}
    both = ficoco.vision_correlation(look, kept=[0, 2], gone=[1], cls=False, score="logits")
    assert both == {1: {0: pytest.approx(0.6 / 0.9), 2: pytest.approx(0.3 / 0.9)}}
    # One target each up to 501 kept tokens.
    assert [ficoco.drops("auto", keep, 0.998) for keep in (501, 502)] == [True, False]
    assert [ficoco.drops(targets, 576, 0.998) for targets in (0, "0", "quantile")] == [True, True, False]
    with pytest.raises(CutRefused, match="no targets 3, only 0, quantile, auto"):
        ficoco.drops(3, 9, 0.998)


def test_redundancy_and_correlation_of_the_decoder_by_hand() -> None:
    a = np.array([[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])  # two visual tokens, then one of the text
    assert ficoco.decoder_redundancy(a, [0, 1], [2], 0.6) == pytest.approx([0.6 * 0.5 - 0.08, 0.6 * 0.5 - 0.12])
    c = ficoco.decoder_correlation(a, [0, 1], [2], kept=[0], gone=[1], gamma=0.6)
    assert c == {1: {0: pytest.approx(0.6 * 0.5 + 0.4 * 0.3 * 0.2)}}


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


def test_raters() -> None:
    image = np.array([[1.0, 0.0]])
    assert raters(Chooser(), image, np.array([[2.0, 0.0], [0.0, 5.0], [1.9, 1.0]])) == [0, 2]
    assert raters(Chooser(), image, np.array([[2.0, 0.0]])) == [0]


def test_page_rank_ignores_the_causal_mask_and_averages_squares() -> None:
    # Head 0: both visual tokens (rows 1, 2) point to row 2; head 1: indifferent.
    logits = np.zeros((2, 4, 4))
    logits[0, 1:3, 2] = 100
    look = LayerAttention(logits, logits, logits, np.zeros_like(logits))
    assert page_rank(look, [1, 2]) == pytest.approx([(0.25 / 2) ** 0.5, (1.25 / 2) ** 0.5])
    # Nothing flows; or so hot that all are alike.
    assert page_rank(look, [1, 2], steps=0) == pytest.approx([0.5, 0.5])
    assert page_rank(look, [1, 2], temperature=1e9) == pytest.approx([0.5, 0.5])


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


def test_the_chooser_breaks_ties_downwards_and_notes_gaps() -> None:
    chooser = Chooser()
    assert chooser.largest({0: 1.0, 1: 4.0, 2: 3.0}, 2) == [1, 2]
    assert chooser.margin == pytest.approx(2 / 3)
    assert chooser.smallest({0: 1.0, 1: 4.0, 2: 3.0}, 2, scale=10.0) == [0, 2]
    assert chooser.margin == pytest.approx(0.1)
    assert chooser.largest({3: 1.0, 1: 1.0, 2: 0.0}, 1) == [1]
    assert chooser.margin == 0
