"""Hyper-parameters of methods given as text, and ``--ratio`` and ``--keep``: what they mean, what is refused."""

from __future__ import annotations

import math

import pytest

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.methods import METHODS, get_method, keep_count

LLAVA_7B = Facts(tokens=576, grid=(24, 24), encoder_layers=23, decoder_layers=32, has_cls=True)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("sparsevlm", {"layers": "2,6,15"}, {"layers": (2, 6, 15)}),
        ("sparsevlm", {"layers": "3"}, {"layers": (3,)}),
        ("pyramiddrop", {"layers": " 4, 8 "}, {"layers": (4, 8)}),
        ("fastv", {"layer": "3"}, {"layer": 3}),
        ("ficoco-v", {"lambda_": "0.5", "window": "3"}, {"lambda_": 0.5, "window": 3}),
        ("inflection", {"llm_keep": "1e-1"}, {"llm_keep": 0.1}),
        ("random", {"seed": "7"}, {"seed": 7}),
        ("tome", {}, {}),
    ],
)
def test_options_as_text(name: str, options: dict[str, str], expected: dict[str, object]) -> None:
    found = get_method(name, options).parameters
    assert found == {**METHODS[name]().parameters, **expected}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sparsevlm", {"layers": "2,x"}, "--set layers=2,x: expected a list such as 2,6,15"),
        ("sparsevlm", {"layers": ""}, "--set layers=: expected a list such as 2,6,15"),
        ("sparsevlm", {"layers": "2,"}, "--set layers=2,: expected a list"),
        ("sparsevlm", {"layers": "6,2"}, r"layers 6,2: expected ascending numbers in 1\.\.31"),
        ("sparsevlm", {"layers": "2,2"}, r"layers 2,2: expected ascending numbers in 1\.\.31"),
        ("pyramiddrop", {"layers": "0,8"}, r"layers 0,8: expected ascending numbers in 1\.\.31"),
        ("fastv", {"layer": "32"}, r"layers 32: expected ascending numbers in 1\.\.31"),
        ("fastv", {"layer": "2.5"}, "--set layer=2.5: expected int"),
        ("aim", {"first_layer": "21"}, "expected ascending numbers"),
        ("vtc-cls", {"first_layer": "23"}, r"first_layer=23: expected 0\.\.22"),
        ("freepruner", {"shallow_layer": "23"}, r"shallow_layer=23: the tower has layers 0\.\.22"),
        ("freepruner", {"pivot_fraction": "nan"}, "pivot_fraction=nan: expected 0 < value <= 1"),
        ("visionzip", {"dominant_fraction": "0"}, "expected 0 < value <= 1"),
        ("vispruner", {"important_fraction": "2"}, "expected 0 < value <= 1"),
        ("prumerge+", {"important_fraction": "-1"}, "expected 0 < value <= 1"),
        ("prumerge", {"neighbours": "0"}, "neighbours=0: expected 1 or more"),
        ("ficoco-v", {"lambda_": "1.1"}, "lambda_=1.1: expected 0 <= value <= 1"),
        ("ficoco-v", {"window": "0"}, "expected positive numbers"),
        ("ficoco-l", {"gamma": "1"}, "give less than 1"),
        ("ficoco-vl", {"split": "1.5"}, "split=1.5: expected 0 <= value <= 1"),
        ("ficoco-vl", {"gamma": "1"}, "give less than 1"),
        ("inflection", {"llm_keep": "0"}, "llm_keep=0: expected 0 < value <= 1"),
        ("inflection", {"prune_text": "-1"}, "prune_text=-1: expected a number of tokens"),
        ("inflection", {"prune_text": "2", "llm_keep": "1"}, "which llm_keep=1 switches off"),
        ("tome", {"rate": "2"}, "method 'tome' has no option 'rate'; it has none"),
        ("fastv", {"layers": "2"}, "method 'fastv' has no option 'layers'; did you mean 'layer'"),
        ("fast", {}, "no method 'fast'; did you mean 'fastv'"),
        # Numbers that make no sense, and layers that the paper's model doesn't have.
        ("random", {"seed": "-1"}, "seed=-1"),
        ("aim", {"temperature": "0"}, "temperature=0"),
        ("aim", {"temperature": "nan"}, "temperature=nan"),
        ("aim", {"steps": "-1"}, "steps=-1"),
        ("ficoco-v", {"first_layer": "23"}, "first_layer=23"),
        ("ficoco-v", {"coefficient": "nan"}, "coefficient=nan"),
        ("ficoco-l", {"first_layer": "32"}, "first_layer=32"),
        ("inflection", {"llm_layer": "40"}, "llm_layer=40"),
    ],
)
def test_bad_options_are_one_line(name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        get_method(name, options).plan(LLAVA_7B, 288)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "arguments", "kept"),
    [
        (144, {"ratio": 0.5}, 72),
        (576, {"ratio": 0.75}, 144),
        (576, {"keep": 64}, 64),
        (144, {}, 144),
        (10, {"ratio": 0.9}, 1),
    ],
)
def test_keep_count(tokens: int, arguments: dict[str, float], kept: int) -> None:
    assert keep_count(tokens, **arguments) == kept  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 1.0}, "0 <= ratio < 1"),
        ({"ratio": -0.1}, "0 <= ratio < 1"),
        ({"ratio": math.nan}, "0 <= ratio < 1"),
        ({"ratio": 0.96}, "leaves none"),
        ({"keep": 11}, r"give 1\.\.10"),
        ({"keep": 0}, r"give 1\.\.10"),
        ({"ratio": 0.5, "keep": 3}, "exclude each other"),
    ],
)
def test_keep_count_refuses(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        keep_count(10, **arguments)  # type: ignore[arg-type]
