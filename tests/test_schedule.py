"""Schedules: the wanted average for every method, what is refused, layers of other models; sites by name."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from one_picture import OF_ONE_PICTURE

from lmmprune.errors import GraphRefusal, InputError, LmmpruneError
from lmmprune.facts import Facts
from lmmprune.passes.find.sites import (
    PROJECTOR_OUTPUT,
    VISION_OUTPUT,
    Site,
    llm_input,
    llm_layer,
    parse_site,
    vision_layer,
)
from lmmprune.passes.methods import METHODS, get_method, keep_count
from lmmprune.passes.reduce.schedule import average, layer_tokens, round_half_up, scaled
from lmmprune.passes.reduce.stage import Stage

LLAVA_7B = Facts(tokens=576, grid=(24, 24), encoder_layers=23, decoder_layers=32, has_cls=True)


def facts(side: int, encoder_layers: int, decoder_layers: int, has_cls: bool = True) -> Facts:
    return Facts(
        tokens=side**2,
        grid=(side, side),
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        has_cls=has_cls,
    )


def handed_on(stages: list[tuple[Site, int]], model: Facts) -> float:
    """The mean of the visual tokens that each decoder layer's MLP sees, layer by layer."""
    total = 0
    for layer in range(model.decoder_layers):
        passed = [keep for site, keep in stages if not site.in_decoder or site.layer <= layer]
        total += passed[-1] if passed else model.tokens
    return total / model.decoder_layers


models = st.builds(
    facts,
    side=st.integers(2, 27),
    encoder_layers=st.integers(1, 40),
    decoder_layers=st.integers(1, 48),
    has_cls=st.booleans(),
)


@pytest.mark.parametrize("name", sorted(METHODS))
@settings(max_examples=80, deadline=None)
@given(model=models, ratio=st.floats(0, 0.99))
@example(model=LLAVA_7B, ratio=0.5)
@example(model=LLAVA_7B, ratio=0.75)
@example(model=LLAVA_7B, ratio=8 / 9)
def test_the_average_is_what_was_asked_for(name: str, model: Facts, ratio: float) -> None:
    target = max(1, model.tokens - round(ratio * model.tokens))
    plan, refusal = planned(name, model, target)
    if refusal is not None:
        assert "\n" not in refusal
        if found := REACHED.search(refusal):
            assert abs(float(found["nearest"]) - target) > 0.95, "what is refused is out of reach"
        return
    stages = [(stage.site, stage.keep) for stage in plan]
    assert (stages == []) == (target == model.tokens)
    assert [site.depth for site, _ in stages] == sorted({site.depth for site, _ in stages})
    counts = [model.tokens, *(keep for _, keep in stages)]
    assert all(before > after >= 1 for before, after in itertools.pairwise(counts))
    for site, _ in stages:
        limit = model.decoder_layers if site.in_decoder else model.encoder_layers
        assert 0 <= site.layer < limit
        # Layer 0 is never what is scored: pyramiddrop scores the layer behind the cut, others the one before it.
        assert site.kind != "llm_input" or site.layer != 1 or name in ("pyramiddrop", "v2drop")
        assert site.kind != "llm_input" or site.layer >= (0 if name in ("cdpruner", "mmtok") else 1)
        assert site.kind != "llm_layer" or site.layer >= 1
    inside = any(site.in_decoder for site, _ in stages)
    assert handed_on(stages, model) == average(stages, model)
    assert abs(average(stages, model) - target) <= (1 if inside else 0)


INSIDE = [
    *("aim", "dart", "fastv", "ficoco-l", "ficoco-vl", "inflection", "priortr", "pyramiddrop", "sparsevlm", "v2drop"),
]


@pytest.mark.parametrize("name", INSIDE)
@settings(max_examples=150, deadline=None)
@given(model=models, ratio=st.floats(0.5, 0.99))
def test_the_ratio_that_a_refusal_names_can_be_done(name: str, model: Facts, ratio: float) -> None:
    _, refusal = planned(name, model, max(1, model.tokens - round(ratio * model.tokens)))
    if refusal is not None and (found := REACHED.search(refusal)):
        possible = keep_count(model.tokens, ratio=float(found["ratio"]))
        assert planned(name, model, possible)[1] is None, refusal


REACHED = re.compile(r"the nearest is (?P<nearest>[\d.]+) of \d+; ask for --ratio (?P<ratio>[\d.]+)$")


def planned(name: str, model: Facts, target: int) -> tuple[tuple[Stage, ...], str | None]:
    """Return a method's stages, or why there are none."""
    try:
        return get_method(name).plan(model, target), None
    except LmmpruneError as error:
        return (), str(error)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 32 layers: (2 * 576 + 30 K) / 32 = 288.
        ("fastv", {"llm_input_2": 269}),
        ("uniform", {"vision_output": 288}),
        ("divprune", {"projector_output": 288}),
        ("ficoco-v", {f"vision_layer_{12 + i}": 576 - (i + 1) * 288 // 11 for i in range(11)}),
        ("tome", {f"vision_layer_{i}": 576 - (i + 1) * 288 // 23 for i in range(23)}),
        ("cdpruner", {"llm_input_0": 288}),
        ("dpp", {"projector_output": 288}),
        ("dart", {"llm_input_2": 269}),
        # (3 * 576 + 29 K) / 32 = 288.
        ("priortr", {"llm_input_3": 258}),
        # (3 * 576 + 14 * 576 f + 5 * 576 f^2 + 10) / 32 = 288: f = 0.7346.
        ("v2drop", {"llm_input_3": 423, "llm_input_17": 311, "llm_input_22": 1}),
        # (8 * 576 + 8 * (576 f + 576 f^2 + 576 f^3)) / 32 = 288: f + f^2 + f^3 = 1, f = 0.5437.
        ("pyramiddrop", {"llm_input_8": 313, "llm_input_16": 170, "llm_input_24": 93}),
        # Fourteen layers see n0, then 7/8 .. 1/8 of it, then eleven see one: (n0 (14 + 3.5) + 11) / 32 = 288.
        (
            "aim",
            {"vision_output": 526} | {f"llm_input_{13 + i}": int(526 * (1 - i / 8) + 0.5) or 1 for i in range(1, 9)},
        ),
    ],
)
def test_schedules_of_7b_are_those_of_the_papers(name: str, expected: dict[str, int]) -> None:
    found = {str(stage.site): stage.keep for stage in get_method(name).plan(LLAVA_7B, 288)}
    assert found == expected


def test_layers_of_7b_are_the_papers() -> None:
    layers = {
        name: sorted({str(s.site) for s in get_method(name).plan(LLAVA_7B, 288)}, key=lambda s: parse_site(s).depth)
        for name in OF_ONE_PICTURE
    }
    assert layers["ficoco-v"] == [f"vision_layer_{i}" for i in range(12, 23)]
    assert layers["tome"] == [f"vision_layer_{i}" for i in range(23)]
    assert layers["sparsevlm"] == ["llm_input_3", "llm_input_7", "llm_input_16"]
    assert layers["aim"] == ["vision_output", *(f"llm_input_{i}" for i in range(14, 22))]
    assert layers["inflection"] == ["vision_output", "llm_input_3"]
    assert layers["ficoco-l"][0] == "llm_layer_5"
    assert layers["ficoco-vl"][0] == "vision_layer_12"
    assert "llm_layer_5" in layers["ficoco-vl"]
    assert "llm_layer_4" not in layers["ficoco-vl"]


@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        # Scored layers 2, 6, 15 of 32 become 1, 1, 2 of 4: cuts one behind them.
        ("sparsevlm", 100, ["llm_input_2", "llm_input_3"]),
        ("pyramiddrop", 100, ["llm_input_1", "llm_input_2", "llm_input_3"]),
        ("fastv", 100, ["llm_input_2"]),
        ("aim", 100, ["vision_output", "llm_input_3"]),
        ("inflection", 100, ["vision_output", "llm_input_2"]),
        ("ficoco-l", 100, ["llm_layer_1", "llm_layer_2", "llm_layer_3"]),
    ],
)
def test_layer_0_is_never_scored_on_four_layers(name: str, target: int, expected: list[str]) -> None:
    found = [str(stage.site) for stage in get_method(name).plan(facts(12, 6, 4), target)]
    assert found == expected or ["vision_output", *found] == expected


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("fastv", {"layer": "1"}, r"layers 1: expected ascending numbers in 2\.\.31"),
        ("sparsevlm", {"layers": "0,6"}, r"layers 0,6: expected ascending numbers in 1\.\.30"),
        ("pyramiddrop", {"layers": "0"}, r"layers 0: expected ascending numbers in 1\.\.31"),
        ("aim", {"first_layer": "0"}, r"expected ascending numbers in 1\.\.30"),
        ("inflection", {"llm_layer": "0"}, r"llm_layer=0: expected 1\.\.30"),
        ("ficoco-l", {"first_layer": "0"}, r"first_layer=0: expected 1\.\.31"),
    ],
)
def test_layer_0_cannot_be_asked_for(name: str, option: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        get_method(name, option).plan(LLAVA_7B, 288)


def test_half_of_the_tokens_per_layer_at_most() -> None:
    """ToMe merges one half into the other: earlier layers take more if the last ones would have to do too much."""
    model = facts(8, 3, 4)
    assert [stage.keep for stage in get_method("tome").plan(model, 8)] == [32, 16, 8]
    assert [stage.keep for stage in get_method("tome").plan(model, 40)] == [56, 48, 40]
    with pytest.raises(InputError, match="halves the tokens at most, 3 times: keep 8 or more, not 7"):
        get_method("tome").plan(model, 7)


@pytest.mark.parametrize(
    ("name", "target", "model", "message"),
    [
        (
            "pyramiddrop",
            100,
            LLAVA_7B,
            "can't bring this model to 100 .* nearest is 144.8 of 576; ask for --ratio 0.75",
        ),
        ("fastv", 20, LLAVA_7B, "can't bring this model to 20 visual tokens per decoder layer on average"),
        ("ficoco-l", 60, LLAVA_7B, "method 'ficoco-l' can't bring this model to 60"),
        ("ficoco-vl", 1, LLAVA_7B, "method 'ficoco-vl' can't bring this model to 1 "),
        *[
            (name, 20, facts(6, 3, layers), rf"method '{name}' scores a decoder layer .* this decoder has {layers};")
            for name, layers in (("fastv", 2), ("sparsevlm", 2), ("aim", 2), ("pyramiddrop", 1))
        ],
        ("ficoco-l", 20, facts(6, 3, 1), "scores decoder layers behind the first one, and this decoder has one layer"),
        ("inflection", 20, facts(6, 3, 2), "this decoder has 2 layers: give --set llm_keep=1"),
        ("prumerge", 1, LLAVA_7B, "adds a token to those that it keeps: keep 2 or more"),
    ],
)
def test_what_no_schedule_reaches_is_refused(name: str, target: int, model: Facts, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        get_method(name).plan(model, target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in sorted(METHODS) if METHODS[name].needs_cls])
def test_methods_that_need_cls_say_so(name: str) -> None:
    with pytest.raises(GraphRefusal, match=f"method '{re.escape(name)}' needs a CLS token"):
        get_method(name).plan(facts(4, 3, 4, has_cls=False), 8)


@given(st.lists(st.integers(0, 40)), st.integers(1, 60), st.integers(1, 40), st.integers(0, 1))
def test_layers_are_scaled_into_the_model(layers: list[int], depth: int, of: int, first: int) -> None:
    first = min(first, depth - 1)
    found = scaled(layers, depth=depth, of=of, first=first)
    assert len(set(found)) == len(found)
    assert all(first <= layer < depth for layer in found)
    if depth == of:
        assert set(found) == {min(max(layer, first), depth - 1) for layer in layers}


def test_halves_round_up() -> None:
    assert [round_half_up(x) for x in (0.49, 0.5, 1.5, 2.5, 2.51)] == [0, 1, 2, 3, 3]


def test_layer_tokens_count_what_the_mlp_sees() -> None:
    counts = [(VISION_OUTPUT, 20), (llm_input(1), 10), (llm_layer(2), 4)]
    assert layer_tokens(counts, tokens=30, layers=4) == [20, 10, 4, 4]


def test_sites_have_names() -> None:
    inside = [llm_input(1), llm_layer(1), llm_input(2)]
    every = [vision_layer(0), vision_layer(22), VISION_OUTPUT, PROJECTOR_OUTPUT, *inside]
    assert [site.depth for site in every] == sorted(site.depth for site in every)
    for site in every:
        assert parse_site(str(site)) == site
    assert [site.scored_layer for site in inside] == [0, 1, 1]
    for text in ("vision", "llm_layer_", "llm_layer_-1", "llm_layer_1.5", "vision_output_1", "llm_input_x", ""):
        with pytest.raises(InputError, match=f"no site '{re.escape(text)}': expected vision_layer_L, vision_output"):
            parse_site(text)
