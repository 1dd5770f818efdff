"""Pictures cut into one of several grids of tiles: answers as transformers gives them, and what each tile keeps."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hub_layouts import oracle
from huggingface_hub import constants
from tile_layouts import FEW, SPLITS, blocks, oracle_picture, tiled
from verdicts import not_held

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.compare.record import score_answer
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.verify.replay import Replay
from lmmprune.compiler.verify.verify import verify

FEW_UNPRUNED: dict[str, Any] = {"tiles": FEW, "ratio": 0.0}
ALL_UNPRUNED: dict[str, Any] = {"tiles": "all", "images": 2, "ratio": 0.0}
MARKED = "Is <image> larger than\n<image>?"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a processor that the folder lacks are looked for nowhere else."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", SPLITS)
def test_the_answer_is_transformers_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "picture", blocks)
    made = tiled(name)
    path = made.bundle(**ALL_UNPRUNED)
    assert not [line for line in made.done[path.name].warnings if "--tiles" in line]
    bundle = Bundle.open(path)
    runtime, replay = Runtime(bundle, threads=1), Replay(bundle)
    grids = set()
    for size in SPLITS[name][1]:
        layout = dataclasses.replace(made.layout, picture=size)
        wanted = oracle.expected(str(made.folder), layout)
        seen = runtime.encode_image(blocks(layout))
        assert seen.picked is not None
        assert seen.picked.grid == seen.picked.own
        pixels = [one.pixels for one in replay.encode_tiles(blocks(layout), seen.picked.grid)]
        np.testing.assert_array_equal(np.concatenate(pixels), wanted.pixels.reshape(-1, *wanted.pixels.shape[-3:]))
        encoded = runtime.prompter.encode(oracle.QUESTION, image_tokens=seen.each, grids=[seen.picked.grid])
        assert encoded.input_ids[0].tolist() == wanted.prompt
        answer = runtime.answer(seen, oracle.QUESTION, oracle.NEW_TOKENS)
        _ = answer.text
        assert answer.tokens == wanted.tokens
        assert answer.stats.tiles == answer.stats.own_tiles
        assert answer.stats.tokens_before == answer.stats.image_tokens == seen.tokens
        grids.add(seen.picked.grid)
    assert len(grids) == len(SPLITS[name][1]), "each picture is cut otherwise"


@pytest.mark.parametrize(
    ("name", "place"), [("SmolVLM-256M-Instruct", "<image>"), ("InternVL3-1B-hf", "<IMG_CONTEXT>")]
)
def test_each_of_two_pictures_has_its_own_grid(name: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "picture", blocks)
    made = tiled(name)
    layout = dataclasses.replace(made.layout, picture=(64, 20))
    runtime = Runtime(Bundle.open(made.bundle(**ALL_UNPRUNED)), threads=1)
    pictures = [runtime.encode_image(blocks(layout, seed)) for seed in (3, 4)]
    for question, mark in ((oracle.QUESTION, ""), (MARKED, place)):
        wanted = oracle.expected(str(made.folder), layout, more=[4], question=question, place=mark)
        answer = runtime.answer(pictures, question, oracle.NEW_TOKENS)
        _ = answer.text
        assert answer.stats.prompt_tokens == len(wanted.prompt)
        assert answer.tokens == wanted.tokens
    assert answer.stats.images == 2
    assert len(set(answer.stats.tiles)) == 2
    # Equal answers say something only where it matters which picture stands where.
    plain, turned = (score_answer(runtime, row, MARKED, answer.tokens) for row in (pictures, pictures[::-1]))
    assert np.abs(plain[0] - turned[0]).max() > 1e-4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SmolVLM-256M-Instruct", {"method": "freepruner"}),
        ("SmolVLM-256M-Instruct", {"method": "cdpruner", "images": 2}),
        ("InternVL3-1B-hf", {"method": "cls", "positions": "original"}),
        ("InternVL3-1B-hf", {"method": "divprune", "images": 2}),
    ],
    ids=lambda value: value["method"] if isinstance(value, dict) else "",
)
def test_each_tile_keeps_what_the_reference_keeps(name: str, options: dict[str, Any]) -> None:
    made = tiled(name)
    path = made.bundle(tiles=FEW, ratio=0.5, **options)
    manifest = Bundle.open(path).manifest
    kept, images = manifest.image_tokens, options.get("images", 1)
    assert kept * 2 == manifest.tokens_before
    assert manifest.feature_rows == images * 5 * kept
    found = {check.name: check for check in verify(path, samples=3, model=str(made.folder))}
    assert not_held(found.values()) == {}
    places = found["kept in the decoder" if options["method"] == "cdpruner" else "kept indices"].found
    assert places.startswith("IoU 1.0000 (lowest 1.0000)")
    assert f"prompts of 1 to {5 * images} images" in found["logits"].found or images > 1
    assert "in 1x1, 1x3, 2x2 tiles as transformers' processor puts them" in found["prompt"].found


def test_what_a_tile_keeps_is_its_own() -> None:
    """The places of tile i begin at i * N, and are those that the tile keeps as a picture of its own."""
    made = tiled("InternVL3-1B-hf")
    path = made.bundle(tiles=FEW, ratio=0.5, method="cls", positions="original")
    bundle = Bundle.open(path)
    runtime, n = Runtime(bundle, threads=1), bundle.manifest.tokens_before
    image = oracle_picture(made.layout)
    seen = runtime.encode_image(image.resize((100, 100)))
    assert seen.kept is not None
    tiles = Replay(bundle).encode_tiles(image.resize((100, 100)), (2, 2))
    for number, tile in enumerate(tiles):
        assert tile.places is not None
        own = seen.kept[seen.kept // n == number] - number * n
        assert own.tolist() == tile.places.tolist()
    # Numbered as if nothing had been dropped: behind five tiles of N everything stands 5 * N further.
    encoded = runtime.prompter.encode("what?", image_tokens=seen.each, grids=[(2, 2)])
    positions = runtime.prompter.positions(encoded, seen.kept)[0].tolist()
    start, (last, count) = encoded.image_start, encoded.spans[-1]
    assert positions[start : start + seen.tokens] == [start + place for place in seen.kept.tolist()]
    assert positions[last + count] == start + 5 * n


def test_grids_share_graphs_and_weights() -> None:
    """All grids cost what a few do: one vision graph, bit for bit, and one decoder with room for more rows."""
    made = tiled("InternVL3-1B-hf")
    few, every = (Bundle.open(made.bundle(**options)).manifest for options in (FEW_UNPRUNED, ALL_UNPRUNED))
    for name in ("vision.onnx", "vision.onnx.data", "decoder.onnx.data"):
        assert few.files[name] == every.files[name]
    assert (few.feature_rows, every.feature_rows) == (5 * 4, 2 * 13 * 4)


def test_integers_are_calibrated_on_tiles() -> None:
    made = tiled("InternVL3-1B-hf")
    path = made.bundle(tiles=FEW, ratio=0.5, method="cls", int8=True, calibration_samples=2)
    answer = Runtime(Bundle.open(path), threads=1).answer(oracle_picture(made.layout), "what?", 4)
    assert answer.stats.tiles == ("1x1",)
    assert answer.stats.new_tokens == 4
