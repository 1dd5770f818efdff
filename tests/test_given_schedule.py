"""Schedules of the user's: what each method makes of one, an export by one against PyTorch, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import lmmprune
from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.find.sites import VISION_OUTPUT, llm_input, llm_layer
from lmmprune.passes.methods import METHODS, get_method

LLAVA_7B = Facts(tokens=576, grid=(24, 24), encoder_layers=23, decoder_layers=32, has_cls=True)
MOVABLE = sorted(name for name, method in METHODS.items() if method.movable)
EXPORT = ("export", "--model", "tiny-llava", "--method", "fastv")


@pytest.mark.parametrize("name", MOVABLE)
def test_stages_are_those_of_the_schedule(name: str) -> None:
    method = get_method(name)
    site = llm_layer if "llm_layer" in method.movable else llm_input
    counts = [(site(31), 9), (site(1), 400), (site(4), 400), (site(7), 50)]
    if "vision_output" in method.movable:
        counts.append((VISION_OUTPUT, 500))
    stages = method.plan_schedule(LLAVA_7B, counts)
    expected = {site: keep for site, keep in counts if (site.layer, keep) != (4, 400)}
    assert {stage.site: stage.keep for stage in stages} == expected
    assert [stage.site.depth for stage in stages] == sorted(site.depth for site in expected)


def test_methods_of_one_place_take_none() -> None:
    with pytest.raises(InputError, match="method 'cls' cuts where its paper says"):
        get_method("cls").plan_schedule(LLAVA_7B, [(VISION_OUTPUT, 9)])
    with pytest.raises(InputError, match="in front of the decoder only"):
        get_method("dart", {"form": "embedding"}).plan_schedule(LLAVA_7B, [(llm_input(3), 9)])


def test_an_export_by_schedule_is_what_pytorch_keeps(tmp_path: Path) -> None:
    schedule = {"llm_input_3": 20, "llm_input_1": 80}
    report = lmmprune.export("tiny-llava", tmp_path / "out", method="sparsevlm", schedule=schedule)
    manifest = report.manifest
    assert {one.site: one.tokens_out for one in manifest.schedule} == schedule
    assert (manifest.requested_tokens, manifest.average_tokens) == (None, (144 + 80 + 80 + 20) / 4)
    assert manifest.cache.length_offsets == (0, -64, -64, -124)
    assert manifest.flops["prefill"]["after"] < manifest.flops["prefill"]["before"]
    assert [check for check in lmmprune.verify(tmp_path / "out", samples=1) if check.passed is False] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "can't be read as JSON"),
        pytest.param("[" * 100_000, "nested more than 64 deep", id="deep"),
        pytest.param('{"llm_input_2": ' + "9" * 5000 + "}", "a number of 5000 digits", id="digits"),
        ("[3]", "isn't an object of sites and whole numbers"),
        ('{"llm_input_2": 7.5}', "isn't an object of sites and whole numbers"),
        ('{"llm_input_2": true}', "isn't an object of sites and whole numbers"),
        ('{"llm_input_2": 9, "llm_input_2": 8}', "'llm_input_2' stands in it twice"),
        ("{}", "names no site"),
        ('{"decoder": 9}', "no site 'decoder'"),
        ('{"vision_output": 9}', "no vision_output on this model: give llm_input_1..3"),
        ('{"llm_input_0": 9}', "no llm_input_0 on this model"),
        ('{"llm_input_4": 9}', "no llm_input_4 on this model"),
        ('{"llm_input_2": 0}', "0 tokens are to leave llm_input_2, and 144 leave the encoder: give 1..144"),
        ('{"llm_input_3": 9, "llm_input_2": 8}', "9 tokens are to leave llm_input_3, and 8 leave llm_input_2"),
    ],
)
def test_bad_schedules(text: str, message: str, tmp_path: Path, refusal: Callable[..., str]) -> None:
    (tmp_path / "schedule.json").write_text(text)
    assert message in refusal(*EXPORT, "--schedule", tmp_path / "schedule.json", "-o", tmp_path / "out")


def test_one_way_to_say_how_many_stay(tmp_path: Path, refusal: Callable[..., str]) -> None:
    file = tmp_path / "schedule.json"
    assert "can't be read as JSON" in refusal(*EXPORT, "--schedule", file, "-o", tmp_path / "out")
    file.write_text(json.dumps({"llm_input_2": 9}))
    more = ("--schedule", file, "--ratio", 0.5, "-o", tmp_path / "out")
    assert "--ratio and --schedule exclude each other" in refusal(*EXPORT, *more)
    with pytest.raises(InputError, match="exclude each other"):
        lmmprune.export("tiny-llava", tmp_path / "out", schedule=file, tokens=lmmprune.Keep(9), method="fastv")
