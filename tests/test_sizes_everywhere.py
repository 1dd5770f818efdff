"""Bundles of several sizes on every way: command line, options in a file, Python, eval, bench, engines, refusals."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edit_json import edit
from hub_layouts import LAYOUTS
from hub_layouts.one_trace import one_trace
from PIL import Image

import lmmprune
from lmmprune.compiler.build.engine_spec import engine_spec
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.engines import sources
from lmmprune.compiler.bundle.interface import Graph, Tensor, View
from lmmprune.compiler.bundle.manifest import FILENAME, Manifest
from lmmprune.compiler.runtime.choose_view import nearest_size
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.compiler.triton.models import configs
from lmmprune.errors import BundleError, TargetError

Cli = Callable[..., tuple[int, str, str]]
LAYOUT = LAYOUTS["Qwen2-VL-2B-Instruct"]
SIZES = ((56, 112), (56, 56))
QUESTION = "What is in the picture?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sizes")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    path = folder / "checkpoint"
    path.mkdir()
    LAYOUT.write(path, LAYOUT.layers)
    return path


@pytest.fixture(scope="module")
def bundle(folder: Path, checkpoint: Path) -> Path:
    with one_trace():
        lmmprune.export(checkpoint, folder / "out", tokens=lmmprune.Ratio(0.5), image_size=SIZES)
    return folder / "out"


@pytest.fixture(scope="module")
def pictures(folder: Path) -> dict[str, Path]:
    """A wide picture and a square one, of no exported size."""
    made = {}
    for name, (height, width) in {"wide": (90, 200), "square": (70, 64)}.items():
        made[name] = folder / f"{name}.png"
        pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(made[name])
    return made


def test_export_and_run_from_the_command_line(
    checkpoint: Path, bundle: Path, pictures: dict[str, Path], tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "export.toml").write_text(f'model = "{checkpoint}"\nratio = 0.5\nimage-size = ["56x112", "56"]\n')
    with one_trace():
        code, out, err = cli("export", "--config", tmp_path / "export.toml", "-o", tmp_path / "out", "--json")
    assert code == 0, err
    assert json.loads(out)["sizes"] == {"56x112": [8, 4], "56x56": [4, 2]}
    weights = (bundle / "vision.onnx.data").read_bytes()
    assert (tmp_path / "out" / "vision.onnx.data").read_bytes() == weights
    for name, size, tokens in (("wide", "56x112", (8, 4)), ("square", "56x56", (4, 2))):
        code, out, err = cli("run", bundle, "--image", pictures[name], "--prompt", QUESTION, "--json")
        assert code == 0, err
        stats = json.loads(out)["stats"]
        assert stats["sizes"] == [size]
        assert (stats["tokens_before"], stats["image_tokens"]) == tokens
    code, _, err = cli("run", bundle, "--image", pictures["square"], "--prompt", QUESTION, "--stats")
    assert "image tokens 4 -> 2 at 56x56" in err


def test_a_picture_is_what_the_stretched_one_is(bundle: Path, pictures: dict[str, Path]) -> None:
    with lmmprune.load(bundle, threads=1) as model:
        for name, (height, width) in (("wide", (56, 112)), ("square", (56, 56))):
            with Image.open(pictures[name]) as picture:
                stretched = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            own, other = (model.ask(one, QUESTION, max_new_tokens=4) for one in (pictures[name], stretched))
            assert own.tokens == other.tokens
            assert own.stats.sizes == other.stats.sizes == (f"{height}x{width}",)
            assert np.array_equal(own.kept, other.kept)


def test_the_graphs_share_the_weights(bundle: Path) -> None:
    found = Bundle.open(bundle)
    sizes = {name: entry.bytes for name, entry in found.manifest.files.items()}
    assert sizes["vision_56x56.onnx.data"] < sizes["vision.onnx.data"] / 50
    assert {"vision.onnx.data", "vision_56x56.onnx"} <= set(sources(found, "vision_56x56"))


def test_eval_bench_inspect_and_card_say_the_size(
    bundle: Path, pictures: dict[str, Path], tmp_path: Path, cli: Cli
) -> None:
    rows = [{"image": str(path), "prompt": QUESTION, "answer": "x"} for path in pictures.values()]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = cli(
        "eval", bundle, "--data", tmp_path / "data.jsonl", "--predictions", tmp_path / "said.jsonl", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["sizes"] == {"56x112": 1, "56x56": 1}
    said = [json.loads(line)["sizes"] for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert said == [["56x112"], ["56x56"]]
    asked = ("--image", pictures["square"], "--prompt", QUESTION, "--rounds", 2, "--new-tokens", 2)
    code, out, err = cli("bench", bundle, *asked, "--no-memory", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["settings"]["sizes"] == {"out": ["56x56"]}
    code, out, err = cli("inspect", bundle)
    assert "8 -> 4 at 56x112, 4 -> 2 at 56x56 visual tokens" in out, err
    code, out, err = cli("card", bundle)
    assert "8 -> 4 at 56x112, 4 -> 2 at 56x56" in out, err
    code, out, err = cli("show", bundle, "--image", pictures["square"], "-o", tmp_path / "shown.png", "--json")
    assert code == 0, err
    assert json.loads(out)["tokens_before"] == 4


def test_engines_are_one_for_each_size(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    spec = engine_spec(manifest, TARGETS["tensorrt-rtx"])
    assert list(spec.profiles) == ["vision", "vision_56x56", "decoder"]
    assert spec.profiles["vision_56x56"] == []
    features = {profile.name: profile.shapes.get("image_features") for profile in spec.profiles["decoder"]}
    assert features == {"prefill": None, "decode": None}, "as many rows as the largest size has, always"


def test_what_takes_one_size_says_so(bundle: Path, pictures: dict[str, Path], cli: Cli) -> None:
    with pytest.raises(TargetError, match="one vision graph, this bundle has one for each size"):
        configs(Bundle.open(bundle).manifest, "onnxruntime")
    code, _, err = cli("bench", bundle, "--image", pictures["wide"], "--prompt", QUESTION, "--explain")
    assert code == 2
    assert "has several sizes of pictures, --explain takes one" in err


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--image-size", 56, "--image-size", "56x56"), "--image-size 56x56 is given 2 times: give each one once"),
        (("--image-size", 56, "--image-size", 60), "pictures of 60 x 60 pixels: this tower works in squares of 28"),
        (("--image-size", 56, "--image-size", "56x"), "--image-size 56x: expected pixels"),
        (("--image-size", 56, "--image-size", 112, "--keep", 8), "--keep 8: the model has 4 visual tokens"),
        (("--tiles", "1x1,2x2"), "--tiles: Qwen2-VL takes a picture as a whole; leave it out"),
        (("--tiles", "all"), "--tiles: Qwen2-VL takes a picture as a whole; leave it out"),
    ],
)
def test_what_can_t_be_is_refused(
    checkpoint: Path, tmp_path: Path, cli: Cli, options: tuple[object, ...], line: str
) -> None:
    code, _, err = cli("export", "--model", checkpoint, *options, "-o", tmp_path / "out")
    assert code == 2
    assert line in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda raw: raw["sizes"].pop(), "sizes is 1: expected 2 to 64"),
        (lambda raw: raw["sizes"].append(copy.deepcopy(raw["sizes"][1])), "names of which none comes twice"),
        (lambda raw: raw["sizes"][0].update(image_tokens=3), "the one of 'vision' among them, once"),
        (lambda raw: raw["sizes"][1].update(image_tokens=3), "image_tokens is 3: expected 2, as scheduled"),
        (lambda raw: raw["sizes"][1]["graph"].update(file="x.onnx"), "file is 'x.onnx': expected vision_56x56.onnx"),
        (lambda raw: raw["sizes"][1]["schedule"][0].update(tokens_in=99), "sizes"),
    ],
)
def test_a_manifest_that_can_t_be_is_refused(
    bundle: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], line: str
) -> None:
    file = tmp_path / FILENAME
    file.write_bytes((bundle / FILENAME).read_bytes())
    edit(file, change)
    with pytest.raises(BundleError, match=line):
        Manifest.load(file)


def view(height: int, width: int) -> View:
    pixels = Tensor(name="pixel_values", dtype="float32", shape=(1, 3, height, width))
    graph = Graph(file=f"vision_{height}x{width}.onnx", inputs=(pixels,), outputs=())
    return View(graph=graph, grid=(1, 1), tiles=None, schedule=(), image_tokens=1)


@pytest.mark.parametrize(
    ("picture", "taken"),
    [
        ((448, 448), (448, 448)),
        ((672, 896), (672, 896)),
        ((896, 672), (896, 672)),
        # Far beyond all areas, the shape decides alone among the largest.
        ((3000, 4000), (672, 896)),
        ((4000, 3000), (896, 672)),
        ((9, 12), (448, 448)),
        ((400, 600), (448, 448)),
        # 0.1706 against 0.1737; from about 605 on, the larger one.
        ((600, 600), (448, 448)),
        ((610, 610), (672, 896)),
        # Equally far from both: the first that was given.
        ((800, 800), (672, 896)),
    ],
)
def test_the_nearest_size_in_shape_and_area(picture: tuple[int, int], taken: tuple[int, int]) -> None:
    sizes = [view(*size) for size in ((448, 448), (672, 896), (896, 672))]
    assert nearest_size(sizes, *picture).pixels == taken


def test_every_picture_takes_the_least_distance() -> None:
    """The formula of the docs, computed with NumPy, over many pictures."""
    sizes = [view(*size) for size in ((280, 280), (448, 672), (672, 448), (672, 896), (1120, 280))]
    sides = np.array([one.pixels for one in sizes], float)
    areas = sides.prod(axis=1)
    for height, width in itertools.product((30, 200, 310, 450, 700, 1000, 4000), repeat=2):
        picture = np.array([height, width]) * np.sqrt(
            np.clip(height * width, areas.min(), areas.max()) / height / width
        )
        distances = (np.log(picture / sides) ** 2).sum(axis=1)
        found = sizes.index(nearest_size(sizes, height, width))
        assert distances[found] <= distances.min() + 1e-8
