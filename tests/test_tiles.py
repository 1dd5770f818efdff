"""Families that cut pictures into tiles: transformers' features, logits and pixels, and pruned bundles."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from exports import TRACED
from PIL import Image
from random_tiles import GRID, IMAGE_TOKEN, SIDE, checkpoint, exported, hugging_face
from short_request import short_request
from verdicts import not_held

from lmmprune.compiler.assets.write_assets import write_assets
from lmmprune.compiler.bundle.bundle import PREPROCESSOR, Bundle
from lmmprune.compiler.export.export import export
from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.runtime.tiles import on_raster
from lmmprune.compiler.verify.replay import Replay
from lmmprune.compiler.verify.verify import verify
from lmmprune.errors import GraphRefusal, LmmpruneError
from lmmprune.facts import Facts
from lmmprune.models import trace
from lmmprune.models.aliases import ALIASES
from lmmprune.models.canonicalize import canonicalize
from lmmprune.models.facts import facts_of
from lmmprune.models.source import resolve
from lmmprune.passes.methods import get_method

Cli = Callable[..., tuple[int, str, str]]

FAMILIES = ["llava_next", "llava_onevision"]
STEPS = 4


def picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_and_logits_are_transformers(family: str) -> None:
    """The unpruned graphs in ONNX Runtime, on a picture of the grid's shape: features, prefill and cached steps."""
    path, report = exported(family)
    model, processor = hugging_face(family, (2, 2))
    engine = Replay(Bundle.open(path))
    looked = engine.encode_image(picture(3 * SIDE, 3 * SIDE))
    spoken = engine.decode(looked, "what is it?", STEPS)
    inputs = processor(picture(3 * SIDE, 3 * SIDE), return_tensors="pt")
    np.testing.assert_array_equal(looked.pixels, inputs["pixel_values"][0].numpy())
    tokens = 5 * GRID**2 + 2 * GRID
    assert looked.features.shape[1] == tokens == report.manifest.image_tokens
    check_features(looked.features[0], model, inputs)

    ids = torch.tensor([spoken.prefix + [IMAGE_TOKEN] * tokens + spoken.tail])
    cache = None
    for step, token in enumerate(spoken.tokens):
        with torch.no_grad():
            picture_too = dict(inputs) if cache is None else {}
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, **picture_too)
        expected, cache = output.logits[0, -1].numpy(), output.past_key_values
        assert np.abs(spoken.logits[step] - expected).max() <= 1e-4 * np.abs(expected).max()
        ids = torch.tensor([[token]])


def check_features(found: np.ndarray, model: Any, inputs: Any) -> None:
    with torch.no_grad():
        (features,) = model.get_image_features(**inputs, return_dict=True).pooler_output
    assert found.shape == tuple(features.shape)
    assert features.abs().mean() > 0.1
    np.testing.assert_allclose(found, features.numpy(), atol=1e-4 * float(features.abs().max()), rtol=0)


def test_another_grid_is_packed_as_transformers_packs_it(tmp_path: Path) -> None:
    """One row of three tiles: rows and columns can't be mixed up unseen."""
    source = resolve(str(checkpoint("llava_next")), tiles=(1, 3))
    fake = trace.fake_model(source)
    graph = trace.trace_vision(fake, source)
    trace.bind(graph, source.readers(fake))
    ir.save(canonicalize(graph), tmp_path / "vision.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "vision.onnx", providers=["CPUExecutionProvider"])
    model, processor = hugging_face("llava_next", (1, 3))
    inputs = processor(picture(6 * SIDE, 2 * SIDE), return_tensors="pt")
    (found,) = session.run(["image_features"], {"pixel_values": inputs["pixel_values"][0].numpy()})
    assert len(found[0]) == 4 * GRID**2 + GRID == source.vision.tokens
    check_features(found[0], model, inputs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tiles", [(2, 2), (1, 3), (2, 1)])
def test_any_picture_gets_the_processors_pixels(family: str, tiles: tuple[int, int], tmp_path: Path) -> None:
    write_assets(resolve(str(checkpoint(family)), tiles=tiles), tmp_path)
    ours = Preprocessor.load(tmp_path / PREPROCESSOR)
    _, processor = hugging_face(family, tiles)
    for width, height in ((32, 32), (333, 100), (17, 5), (64, 640), (31, 33), (1, 30)):
        image = picture(width, height)
        expected = np.asarray(processor(image, return_tensors="np")["pixel_values"])[0]
        np.testing.assert_array_equal(ours(image), expected)
        assert ours.pixels(image).shape == (3, tiles[0] * SIDE, tiles[1] * SIDE)


METHODS: dict[str, dict[str, Any]] = {
    "random": {},
    "uniform": {},
    "cls": {},
    "vtc-cls": {},
    "freepruner": {"positions": "contiguous"},
    "inflection": {},
    "prumerge": {},
    "prumerge+": {"options": (("neighbours", "5"),)},
    "visionzip": {},
    "vispruner": {},
    "divprune": {},
    "scope": {},
    "downsample": {},
    "dpp": {},
    "mmtok": {},
    "aim": {"positions": "contiguous"},
    # The first two of three layers see all tokens.
    "fastv": {"ratio": 0.3},
    "sparsevlm": {"ratio": 0.3},
    "pyramiddrop": {},
    "ficoco-l": {},
    "cdpruner": {},
    "dart": {"options": (("form", "embedding"),)},
}


# Without CLS, with another norm behind the tower's last layer and another decoder: what reads these things differently.
PRUNED = [("llava_next", method) for method in METHODS] + [
    ("llava_onevision", method) for method in ("freepruner", "visionzip", "divprune", "aim", "fastv", "ficoco-l")
]


@pytest.mark.parametrize(("family", "method"), PRUNED)
def test_pruned_bundles_equal_the_reference(family: str, method: str) -> None:
    path, report = exported(family, **{"ratio": 0.5, "method": method, **METHODS[method]})
    checks = {check.name: check for check in verify(path, samples=2, model=str(checkpoint(family)))}
    assert not_held(checks.values()) == {}
    assert report.manifest.tokens_before == 5 * GRID**2 + 2 * GRID
    assert {"kept indices", "kept in the decoder"} & set(checks)


def test_every_bucket_is_compared() -> None:
    path, _ = exported("llava_next", method="inflection", buckets=(0.5, 0.75))
    checks = {check.name: check for check in verify(path, samples=2, model=str(checkpoint("llava_next")))}
    assert not_held(checks.values()) == {}
    assert {"dynamic counts", "kept indices", "logits"} <= set(checks)


def places_of_newlines(rows: int, columns: int) -> list[int]:
    return [GRID**2 + row * (columns * GRID + 1) + columns * GRID for row in range(rows * GRID)]


@pytest.mark.parametrize("method", ["freepruner", "visionzip", "divprune", "downsample"])
def test_newlines_always_stay(method: str) -> None:
    """Of 88 tokens 8 are newlines: whatever a method keeps of the others, they are there, in the picture's order."""
    path, report = exported("llava_next", method=method, keep=20)
    assert report.manifest.image_tokens == 20
    looked = Replay(Bundle.open(path)).encode_image(picture(70, 50))
    assert looked.places is not None
    places = looked.places.tolist()
    assert places == sorted(places)
    assert set(places_of_newlines(2, 2)) < set(places)
    model, _ = hugging_face("llava_next", (2, 2))
    rows = looked.features[0][np.isin(looked.places, places_of_newlines(2, 2))]
    np.testing.assert_allclose(rows, np.tile(model.model.image_newline.detach().numpy(), (8, 1)), atol=1e-6)


def test_what_took_in_others_is_told_in_the_pictures_order() -> None:
    """visionzip's targets are patches, neither CLS tokens nor newlines, between which they are set."""
    path, _ = exported("llava_next", method="visionzip", keep=40)
    site = Runtime(Bundle.open(path)).encode_image(picture(70, 50)).sites["vision_output"]
    taking = site.kept[site.received]
    assert len(taking)
    assert (taking >= 0).all()
    assert not set(taking.tolist()) & set(places_of_newlines(2, 2))


def test_a_pruned_bundle_answers_and_is_drawn(tmp_path: Path, cli: Cli) -> None:
    path, _ = exported("llava_next", method="freepruner", keep=20)
    picture(70, 50).save(tmp_path / "picture.png")
    code, out, _ = cli("run", path, "--image", tmp_path / "picture.png", "--prompt", "what?", "--stats")
    assert code == 0, out
    drawing = tmp_path / "drawn.png"
    code, out, _ = cli("show", path, "--image", tmp_path / "picture.png", "-o", drawing, "--json")
    assert code == 0, out
    assert len(json.loads(out)["kept_indices"]) == 20
    assert drawing.is_file()


@pytest.mark.parametrize("tiles", [(2, 2), (1, 3)])
def test_tokens_are_found_again_on_the_raster(tiles: tuple[int, int]) -> None:
    """The oracle walks through the picture: the overview, then line by line, each with a newline."""
    expected = [-1] * GRID**2
    for line in range(tiles[0] * GRID):
        expected += [line * tiles[1] * GRID + column for column in range(tiles[1] * GRID)] + [-1]
    places = np.array([-1, *range(len(expected))])
    assert on_raster(places, (GRID, GRID), tiles).tolist() == [-1, *expected]
    assert on_raster(places, (GRID, GRID), None).tolist() == places.tolist()


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("llava_next", {"tiles": (3, 3)}, "--tiles 3x3: the model was trained on 1x2, 2x1, 2x2, 1x3"),
        ("llava_onevision", {"tiles": (4, 4)}, "--tiles 4x4: the model scales more than 9 tiles down"),
        ("llava_next", {"keep": 8}, "8 of them are newlines, which always stay"),
        ("llava_next", {"keep": 12, "method": "visionzip"}, "keeps a CLS token of each tile: keep 13 or more"),
        ("llava_next", {"keep": 9, "method": "prumerge"}, "keep 10 or more"),
        ("llava_next", {"method": "inflection", "buckets": (0.5, 0.95)}, "a bucket of 4 tokens: 8 are newlines"),
        (
            "llava_next",
            {"ratio": 0.5, "method": "tome"},
            "works inside the encoder, which sees this model's pictures as 5",
        ),
        ("llava_onevision", {"ratio": 0.5, "method": "cls"}, "needs a CLS token"),
    ],
)
def test_what_cant_be_done_is_refused(family: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(LmmpruneError, match=re.escape(message)) as caught:
        export(short_request(model=str(checkpoint(family)), output=tmp_path / "out", **options), traced=TRACED)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_rule_that_reads_the_rows_of_one_image_is_refused(tmp_path: Path) -> None:
    """A method from outside, written before there were tiles."""
    (tmp_path / "longest.py").write_text(
        "from dataclasses import dataclass\n"
        "from lmmprune.passes.methods import Method\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Longest(Method):\n"
        "    name, reference, exactness = 'longest', 'an example', 'exact'\n"
        "    def filter(self, at):\n"
        "        return at.rows(at.b.op('ReduceL2', at.stream, [2], keepdims=0), 'visual', 1)\n"
    )
    options = {"method": "longest", "method_file": tmp_path / "longest.py", "keep": 20}
    with pytest.raises(GraphRefusal, match="reads rows of one image, a picture has 5 here"):
        export(short_request(model=str(checkpoint("llava_next")), output=tmp_path / "out", **options), traced=TRACED)


def test_the_layer_behind_the_last_one_cant_be_read() -> None:
    facts = Facts(tokens=16, grid=(4, 4), encoder_layers=3, decoder_layers=4, has_cls=True, has_next_layer=False)
    with pytest.raises(LmmpruneError, match="reads the encoder layer behind the features"):
        get_method("prumerge").plan(facts, 8)


@pytest.mark.parametrize("alias", [name for name, alias in ALIASES.items() if alias.config])
def test_families_say_truly_where_they_can_be_cut(alias: str) -> None:
    """A method that works inside the encoder is refused exactly where the family doesn't list that site."""
    source = resolve(alias, weights="dummy")
    listed = "vision_layer" in source.family.sites
    try:
        taken = bool(get_method("tome").plan(facts_of(source), source.vision.tokens // 2))
    except GraphRefusal:
        taken = False
    assert taken == listed
    assert get_method("fastv").plan(facts_of(source), source.vision.tokens // 2)


def test_the_published_models_have_their_published_sizes() -> None:
    vision = resolve("llava-v1.6-vicuna-7b", weights="dummy").vision
    assert (vision.tokens - vision.separators, vision.tiles) == (2880, 5)
    wide = resolve("llava-v1.6-vicuna-7b", weights="dummy", tiles=(1, 3)).vision
    assert (wide.tokens - wide.separators, wide.separators) == (4 * 576, 24)
    vision = resolve("llava-onevision-qwen2-0.5b", weights="dummy").vision
    assert (vision.grid, vision.layers, vision.has_cls, vision.has_next_layer) == ((27, 27), 26, False, False)


def test_models_lists_the_limits(cli: Cli) -> None:
    code, out, _ = cli("models", "--json")
    assert code == 0
    families = {row["name"]: row for row in json.loads(out)["families"]}
    assert set(families) >= {"llava", "llava_next", "llava_onevision"}
    assert all(row["limits"] for row in families.values())
    assert families["llava_next"]["tiles"]
    code, out, _ = cli("models")
    assert code == 0
    assert "newline tokens" in out
