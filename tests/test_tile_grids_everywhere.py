"""Grids of tiles through the commands that ask, through a server, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import serve_fixtures as sf
from PIL import Image
from tile_layouts import FEW, oracle_picture, tiled

from lmmprune.compiler.build.profiles import decoder_profiles
from lmmprune.compiler.bundle.bundle import PREPROCESSOR, Bundle
from lmmprune.compiler.bundle.tile_rules import check_tiles
from lmmprune.compiler.deploy.stages import stages_of
from lmmprune.compiler.measure.read_result import _samples
from lmmprune.compiler.runtime.open_picture import load_image
from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.runtime.vision_encoder import VisionEncoder
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.errors import BundleError, InputError

Cli = Callable[..., tuple[int, str, str]]
LAYOUT = "InternVL3-1B-hf"
QUESTION = "What is on the left?"


@pytest.fixture(scope="module")
def bundle() -> Path:
    return tiled(LAYOUT).bundle(tiles=FEW, ratio=0.5, method="cls", positions="original")


@pytest.fixture(scope="module")
def unpruned() -> Path:
    return tiled(LAYOUT).bundle(tiles=FEW, ratio=0.0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures that go into 2x2, 1x3, and into 1x3 though the processor would take 1x5."""
    folder = tmp_path_factory.mktemp("pictures")
    image = oracle_picture(tiled(LAYOUT).layout)
    for number, size in enumerate(((100, 100), (300, 100), (300, 60))):
        image.resize(size).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def said(bundle: Path, pictures: list[Path]) -> list[str]:
    runtime = Runtime(Bundle.open(bundle), threads=1)
    return [runtime.answer(load_image(path), QUESTION, 6).text for path in pictures]


def test_run_says_which_grid(bundle: Path, pictures: list[Path], said: list[str], cli: Cli) -> None:
    words = ["--prompt", QUESTION, "--max-new-tokens", 6]
    code, out, err = cli("run", bundle, "--image", pictures[0], *words, "--stats")
    assert (code, out) == (0, said[0] + "\n"), err
    assert "image tokens 20 -> 10 in 2x2 tiles" in err
    assert "the checkpoint's own processor" not in err
    code, out, err = cli("run", bundle, "--image", pictures[2], *words)
    assert code == 0
    assert "cut into 1x3 tiles; the checkpoint's own processor makes it 1x5, which the bundle doesn't have" in err
    code, out, err = cli("run", bundle, "--image", pictures[2], *words, "--json")
    stats = json.loads(out)["stats"]
    assert (stats["tiles"], stats["own_tiles"], stats["image_tokens"]) == (["1x3"], ["1x5"], 8)


def test_eval_compare_and_bench(
    unpruned: Path, bundle: Path, pictures: list[Path], said: list[str], cli: Cli, tmp_path: Path
) -> None:
    rows = [{"image": str(path), "prompt": QUESTION, "answer": text} for path, text in zip(pictures, said, strict=True)]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = cli("eval", bundle, "--data", data, "--max-new-tokens", 6, "--json")
    assert code == 0, err
    assert json.loads(out)["total"] == 3
    assert json.loads(out)["tiles"] == {"2x2": 1, "1x3": 2}
    wrote = tmp_path / "predictions.jsonl"
    assert cli("eval", bundle, "--data", data, "--max-new-tokens", 6, "--predictions", wrote)[0] == 0
    assert [json.loads(line)["tiles"] for line in wrote.read_text().splitlines()] == [["2x2"], ["1x3"], ["1x3"]]
    code, out, err = cli("compare", unpruned, bundle, "--data", data, "--rounds", 2, "--max-new-tokens", 4, "--json")
    assert code == 0, err
    assert json.loads(out)["settings"]["examples"] == 3
    asked = ["--image", pictures[1], "--prompt", QUESTION, "--rounds", 2, "--new-tokens", 2]
    code, out, err = cli("bench", unpruned, bundle, *asked, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [row["tokens_before"] for row in found["rows"]] == [4, 4]
    assert found["settings"]["tiles"][bundle.name] == ["1x3"]
    code, out, err = cli("bench", bundle, *asked, "--no-memory")
    assert code == 0, err
    assert f"{bundle.name}: a prompt's pictures as 1x3 tiles\n" in out


def test_the_kept_tokens_of_all_tiles_are_drawn(bundle: Path, pictures: list[Path], cli: Cli, tmp_path: Path) -> None:
    drawn = tmp_path / "kept.png"
    code, out, err = cli("show", bundle, "--image", pictures[1], "-o", drawn, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["tokens_before"], len(found["kept_indices"])) == (16, 8)
    assert found["sites"][0]["tokens_in"] == 16
    # Two patches of each tile, in their own places.
    assert [place // 4 for place in found["kept_indices"]] == [0, 0, 1, 1, 2, 2, 3, 3]
    # The picture as wide as three tiles.
    assert Image.open(drawn).width > Image.open(drawn).height


def test_a_question_chooses_within_each_tile(pictures: list[Path], cli: Cli, tmp_path: Path) -> None:
    path = tiled(LAYOUT).bundle(tiles=FEW, ratio=0.5, method="cdpruner")
    code, out, err = cli("show", path, "--image", pictures[1], "--prompt", QUESTION, "-o", tmp_path / "k.png", "--json")
    assert code == 0, err
    (site,) = json.loads(out)["sites"]
    assert (site["site"], site["tokens_in"]) == ("llm_input_0", 16)
    assert [place // 4 for place in site["kept"]] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_server_answers(bundle: Path, pictures: list[Path], said: list[str]) -> None:
    with sf.serving(bundle) as server:
        about = json.loads(server.ask("/v1/models")[2])["data"][0]["lmmprune"]
        assert about["tile_grids"] == ["1x1", "1x3", "2x2"]
        for path, text in zip(pictures, said, strict=True):
            body: dict[str, Any] = {"model": bundle.name, "max_tokens": 6}
            body["messages"] = [sf.user(QUESTION, sf.data_url(path.read_bytes()))]
            status, _, raw = server.ask("/v1/chat/completions", body)
            assert status == 200
            reply = json.loads(raw)
            assert reply["choices"][0]["message"]["content"] == text
            grid = "2x2" if path == pictures[0] else "1x3"
            assert reply["usage"]["prompt_tokens_details"]["image_tiles"] == [grid]


def test_inspect_models_and_engines_say_so(bundle: Path, cli: Cli) -> None:
    assert "4 -> 2 visual tokens of each of 1 to 5 tiles" in cli("inspect", bundle)[1]
    assert "one of several grids of tiles (--tiles)" in cli("models", "internvl")[1]
    assert "one of several grids of tiles (--tiles)" in cli("models", "smolvlm")[1]
    assert "one of several grids" not in cli("models", "llava")[1]
    manifest = Bundle.open(bundle).manifest
    assert decoder_profiles(manifest, TARGETS["tensorrt-11"], None)[0].shapes["input_ids"][1][1] > 5 * 2
    with pytest.raises(InputError, match=r"--max-prompt 10 must be more than the image's 10 tokens \(of 5 tiles\)"):
        decoder_profiles(manifest, TARGETS["tensorrt-11"], 10)


def test_a_plan_times_one_tile_and_counts_all() -> None:
    path = tiled(LAYOUT).bundle(tiles=FEW, ratio=0.5, method="cdpruner")
    bundle = Bundle.open(path)
    profiles = {"decoder": decoder_profiles(bundle.manifest, TARGETS["tensorrt-11"], None)}
    vision, select, prefill, _ = stages_of(bundle, profiles)
    assert (vision.name, select.name) == ("vision", "selection")
    # The selection sees one tile of N tokens, the decoder K of each of five.
    image = bundle.manifest.prompt.image_token_id
    assert [(stage.inputs["input_ids"] == image).sum() for stage in (select, prefill)] == [4, 5 * 2]
    times = {"vision": 2.0, "prefill": 3.0, "decode": 1.0}
    assert _samples([times], 5)["ttft_ms"] == (5 * 2.0 + 3.0,)


def test_what_looks_at_one_image_says_so(
    bundle: Path, pictures: list[Path], refusal: Callable[..., str], tmp_path: Path
) -> None:
    asked = ["--image", pictures[0], "--prompt", "?", "--explain"]
    assert "sees a picture's tiles one by one, --explain looks at one image" in refusal("bench", bundle, *asked)
    two = ["--image", pictures[0]] * 2
    assert "2 pictures, this bundle takes 1 picture per" in refusal("run", bundle, *two, "--prompt", "what?")


@pytest.mark.parametrize(
    ("model", "options", "line"),
    [
        (LAYOUT, ["--tiles", "2x2,"], "--tiles 2x2,: expected rows x columns"),
        (LAYOUT, ["--tiles", "0x2"], "--tiles 0x2: expected rows x columns"),
        (LAYOUT, ["--tiles", ""], "--tiles : expected rows x columns"),
        (LAYOUT, ["--tiles", "1x1,2x2,1x1"], "--tiles 1x1 is given 2 times: give each one once"),
        (LAYOUT, ["--tiles", "9x9"], "--tiles 9x9: 82 images with the overview, expected 64 at most"),
        (LAYOUT, ["--tiles", "2x2", "--method", "inflection", "--buckets", "0.3,0.6"], "--tiles and --buckets"),
        (LAYOUT, ["--tiles", "2x2", "--images", 2, "--joint", "--ratio", 0.5], "--joint: not of InternVL yet"),
        ("tiny-llava", ["--tiles", "2x2"], "--tiles: LLaVA-1.5 takes a picture as a whole; leave it out"),
        ("tiny-llava", ["--tiles", "all"], "--tiles: LLaVA-1.5 takes a picture as a whole; leave it out"),
    ],
)
def test_what_cant_be_exported_says_so(
    model: str, options: list[object], line: str, refusal: Callable[..., str], tmp_path: Path
) -> None:
    where = tiled(LAYOUT).folder if model == LAYOUT else model
    assert line in refusal("export", "--model", where, "-o", tmp_path / "out", *options)


def test_what_needs_no_checkpoint_to_be_refused(refusal: Callable[..., str], tmp_path: Path) -> None:
    dummy = ["--model", "smolvlm-256m", "--weights", "dummy", "--layers", 3, "-o", tmp_path / "out"]
    said = refusal("export", *dummy, "--tiles", "all", "--images", 9)
    assert "--tiles 4x4: 153 images take 9792 of the model's 8192 positions" in said
    said = refusal("export", *dummy, "--tiles", "2x2", "--method", "fastv", "--ratio", 0.3)
    assert "--tiles: method 'fastv' cuts at llm_input_2, where a tile's place" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grids": ()}, "expected grids, none of them twice"),
        ({"grids": ((1, 1), (1, 1))}, "expected grids, none of them twice"),
        ({"grids": ((8, 8),)}, "images of one of tile_grids.grids is 65"),
        ({"tile": ""}, "tile_grids.tile is 0"),
        ({"overview": "{prompt}<IMG_CONTEXT>"}, "no '{prompt}'"),
        ({"after": "<IMG_CONTEXT>"}, "no picture in it"),
        ({"picture": "<box><IMG_CONTEXT>"}, "expected tile_grids.picture in it"),
    ],
)
def test_a_manifest_that_cant_be_is_refused(change: dict[str, Any], message: str, bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert manifest.tile_grids is not None
    check_tiles(manifest)
    broken = dataclasses.replace(manifest, tile_grids=dataclasses.replace(manifest.tile_grids, **change))
    with pytest.raises(ValueError, match="tile_grids") as refused:
        check_tiles(broken)
    assert message in str(refused.value)


def test_grids_that_no_prompt_is_written_for_are_refused(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    steps = Preprocessor.load(opened.file(PREPROCESSOR))
    assert steps.grids is not None
    VisionEncoder(opened, steps, lambda _: None)  # type: ignore[arg-type,return-value]  # nothing is run
    other = dataclasses.replace(steps, grids=dataclasses.replace(steps.grids, grids=((2, 1),)))
    for wrong, found in ((other, "2x1"), (dataclasses.replace(steps, grids=None), "no tiles")):
        with pytest.raises(BundleError, match=f"pictures into {found}, the manifest's prompts are of 1x1, 1x3, 2x2"):
            VisionEncoder(opened, wrong, lambda _: None)  # type: ignore[arg-type,return-value]  # same
