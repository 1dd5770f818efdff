"""Families that cut pictures into tiles: transformers' features, logits and pixels, and pruned bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from random_tiles import GRID, IMAGE_TOKEN, SIDE, exported, hugging_face

from lmmprune.compiler.bundle import PREPROCESSOR, Bundle
from lmmprune.compiler.preprocess import Preprocessor
from lmmprune.compiler.replay import Replay
from lmmprune.compiler.verify import verify

FAMILIES = ["llava_next", "llava_onevision"]
GRIDS = [(2, 2), (1, 3)]
STEPS = 4


def picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tiles", GRIDS)
def test_features_and_logits_are_transformers(family: str, tiles: tuple[int, int]) -> None:
    """The unpruned graphs in ONNX Runtime, on a picture of the grid's shape: features, prefill and cached steps."""
    path, report = exported(family, tiles=tiles)
    model, processor = hugging_face(family, tiles)
    engine = Replay(Bundle.open(path))
    height, width = tiles[0] * SIDE, tiles[1] * SIDE
    looked = engine.look(picture(3 * width, 3 * height))
    spoken = engine.say(looked, "what is it?", STEPS)
    inputs = processor(picture(3 * width, 3 * height), return_tensors="pt")
    np.testing.assert_array_equal(looked.pixels, inputs["pixel_values"][0].numpy())

    with torch.no_grad():
        (features,) = model.get_image_features(**inputs, return_dict=True).pooler_output
    tokens = (tiles[0] * tiles[1] + 1) * GRID**2 + tiles[0] * GRID
    assert looked.features.shape[1] == len(features) == tokens == report.manifest.image_tokens
    assert features.abs().mean() > 0.1
    np.testing.assert_allclose(looked.features[0], features.numpy(), atol=1e-4 * float(features.abs().max()), rtol=0)

    ids = torch.tensor([spoken.prefix + [IMAGE_TOKEN] * tokens + spoken.tail])
    cache = None
    for step, token in enumerate(spoken.tokens):
        with torch.no_grad():
            picture_too = dict(inputs) if cache is None else {}
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, **picture_too)
        expected, cache = output.logits[0, -1].numpy(), output.past_key_values
        assert np.abs(spoken.logits[step] - expected).max() <= 1e-4 * np.abs(expected).max()
        ids = torch.tensor([[token]])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tiles", [(2, 2), (2, 1)])
def test_any_picture_gets_the_processors_pixels(family: str, tiles: tuple[int, int], tmp_path: Path) -> None:
    path, _ = exported(family, tiles=tiles)
    ours = Preprocessor.load(path / PREPROCESSOR)
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
    "freepruner": {"positions": "original"},
    "inflection": {},
    "prumerge": {},
    "prumerge+": {"options": (("neighbours", "5"),)},
    "visionzip": {},
    "vispruner": {},
    "divprune": {},
    "aim": {"positions": "original"},
    "fastv": {},
    "sparsevlm": {},
    "pyramiddrop": {},
    "ficoco-l": {},
}


CLS = {"cls", "vtc-cls", "inflection", "prumerge", "prumerge+", "vispruner"}
PRUNED = [("llava_next", method) for method in METHODS] + [
    ("llava_onevision", method) for method in METHODS if method not in CLS
]


@pytest.mark.parametrize(("family", "method"), PRUNED)
def test_pruned_bundles_equal_the_reference(family: str, method: str) -> None:
    path, report = exported(family, method=method, ratio=0.5, **METHODS[method])
    checks = {check.name: check for check in verify(path, samples=2, progress=lambda *_: None)}
    assert all(check.passed for check in checks.values()), checks
    assert report.manifest.tokens_before == 5 * GRID**2 + 2 * GRID
    assert {"kept indices", "kept in the decoder"} & set(checks)


def test_every_bucket_is_compared() -> None:
    path, _ = exported("llava_next", method="inflection", buckets=(0.5, 0.75))
    checks = {check.name: check for check in verify(path, samples=2, progress=lambda *_: None)}
    assert all(check.passed for check in checks.values()), checks
    assert {"own counts", "kept indices", "logits"} <= set(checks)
