"""Hyper-parameters of methods given as text, and ``--ratio`` and ``--keep``: what they mean, what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Optional

import pytest

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.methods import METHODS, Method, get_method, keep_count

LLAVA_7B = Facts(tokens=576, grid=(24, 24), encoder_layers=23, decoder_layers=32, has_cls=True)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("sparsevlm", {"layers": "2,6,15"}, {"layers": (2, 6, 15)}),
        ("sparsevlm", {"layers": "3"}, {"layers": (3,)}),
        ("pyramiddrop", {"layers": " 4, 8 "}, {"layers": (4, 8)}),
        ("fastv", {"layer": "3"}, {"layer": 3}),
        ("ficoco-v", {"lambda_": "0.5", "window": "3"}, {"lambda_": 0.5, "window": 3}),
        ("ficoco-vl", {"targets": "0", "score": "logits"}, {"targets": "0", "score": "logits"}),
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
        ("sparsevlm", {"layers": "6,2"}, r"layers 6,2: expected ascending numbers in 1\.\.30"),
        ("sparsevlm", {"layers": "2,2"}, r"layers 2,2: expected ascending numbers in 1\.\.30"),
        ("pyramiddrop", {"layers": "0,8"}, r"layers 0,8: expected ascending numbers in 1\.\.31"),
        ("fastv", {"layer": "32"}, r"layers 32: expected ascending numbers in 2\.\.31"),
        ("fastv", {"layer": "2.5"}, "--set layer=2.5: expected int"),
        ("aim", {"first_layer": "21"}, "expected ascending numbers"),
        ("vtc-cls", {"first_layer": "23"}, r"first_layer=23: expected 0\.\.22"),
        ("freepruner", {"shallow_layer": "23"}, r"shallow_layer=23: expected 0\.\.22"),
        ("freepruner", {"pivot_fraction": "nan"}, "pivot_fraction=nan: expected 0 < value <= 1"),
        ("visionzip", {"dominant_fraction": "0"}, "expected 0 < value <= 1"),
        ("vispruner", {"important_fraction": "2"}, "expected 0 < value <= 1"),
        ("prumerge+", {"important_fraction": "-1"}, "expected 0 < value <= 1"),
        ("prumerge", {"neighbours": "0"}, "neighbours=0: expected 1 or more"),
        ("ficoco-v", {"lambda_": "1.1"}, "lambda_=1.1: expected 0 <= value <= 1"),
        ("ficoco-v", {"window": "0"}, "expected positive numbers"),
        ("ficoco-v", {"targets": "2"}, "--set targets=2: expected auto or 0 or quantile"),
        ("ficoco-vl", {"score": "logit"}, "--set score=logit: expected attention or logits"),
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


@dataclass(frozen=True, kw_only=True)
class Every(Method):
    """One hyper-parameter of every type that there is."""

    name = "every"
    reference = "nobody"
    exactness = "exact"

    flag: bool = True
    other: bool = False
    count: int = 3
    share: float = 0.5
    word: str = "a"
    most: int | None = None
    label: Optional[str] = None  # noqa: UP045  # the older spelling is read, too
    either: int | float | None = 2
    pair: tuple[int, float] = (1, 0.5)
    names: tuple[str, ...] = ("a", "b")
    flags: tuple[bool, ...] = ()
    mode: Literal["near", "far"] = "near"
    table: dict[str, int] | None = None


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("flag=false", False),
        ("flag=True", True),
        ("other=yes", True),
        ("other=on", True),
        ("other=0", False),
        ("count=-4", -4),
        ("share=1e-3", 0.001),
        ("share=2", 2.0),
        ("word=false", "false"),
        ("word=", ""),
        ("most=7", 7),
        ("most=none", None),
        ("label=none", None),
        ("label=nine", "nine"),
        ("either=3", 3),
        ("either=0.25", 0.25),
        ("pair=4,1", (4, 1.0)),
        ("names=x", ("x",)),
        ("flags=no,yes", (False, True)),
        ("mode=far", "far"),
    ],
)
def test_a_text_is_read_as_its_field_is_annotated(given: str, value: object) -> None:
    name, _, text = given.partition("=")
    found = getattr(Every.with_options({name: text}), name)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("flag=maybe", "true or false"),
        ("flag=", "true or false"),
        ("count=2.0", "int"),
        ("most=many", "int or none"),
        ("most=", "int or none"),
        ("either=x", "int or float or none"),
        ("pair=4", "2 values, separated by commas"),
        ("pair=4,x", "2 values, separated by commas"),
        ("flags=1,2", "a list such as true,false"),
        ("mode=middle", "near or far"),
        ("table=a", "dict or none"),
    ],
)
def test_a_text_of_another_type_is_one_line(given: str, expected: str) -> None:
    name, _, text = given.partition("=")
    with pytest.raises(InputError) as caught:
        Every.with_options({name: text})
    assert str(caught.value) == f"--set {given}: expected {expected}"


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        Every.with_options({"flag": "2", "cuont": "3", "count": "x", "word": "fine"})
    assert str(caught.value) == (
        "--set flag=2: expected true or false; method 'every' has no option 'cuont'; did you mean 'count'; "
        "--set count=x: expected int"
    )


def test_a_type_that_only_type_checkers_see_is_one_line() -> None:
    made = dataclass(frozen=True, kw_only=True)(
        type("Unseen", (Every,), {"__annotations__": {"gone": "Gone | None"}, "gone": None, "name": "unseen"})
    )
    with pytest.raises(InputError, match=r"the type of its option 'gone' can't be told .*'Gone' is not defined"):
        made.with_options({"gone": "1"})


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
