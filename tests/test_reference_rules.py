"""The reference's rules on cases small enough to compute by hand, and that it shares nothing with the passes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lmmprune.compiler.verify import reference
from lmmprune.compiler.verify.reference import SITES, CutRefused, ficoco, rule_options
from lmmprune.compiler.verify.reference.chooser import Chooser
from lmmprune.compiler.verify.reference.decoder_scores import page_rank, raters
from lmmprune.compiler.verify.reference.layer_attention import LayerAttention
from lmmprune.compiler.verify.reference.options import SCHEDULE
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


def test_the_chooser_breaks_ties_downwards_and_notes_gaps() -> None:
    chooser = Chooser()
    assert chooser.largest({0: 1.0, 1: 4.0, 2: 3.0}, 2) == [1, 2]
    assert chooser.margin == pytest.approx(2 / 3)
    assert chooser.smallest({0: 1.0, 1: 4.0, 2: 3.0}, 2, scale=10.0) == [0, 2]
    assert chooser.margin == pytest.approx(0.1)
    assert chooser.largest({3: 1.0, 1: 1.0, 2: 0.0}, 1) == [1]
    assert chooser.margin == 0
