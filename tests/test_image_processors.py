"""Image processors as checkpoints state them, pixel for pixel against what transformers makes of the same files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import prompt_checkpoints as pc
import pytest
from PIL import Image
from transformers import AutoImageProcessor

from lmmprune.compiler.assets.image_processor import preprocessing
from lmmprune.compiler.assets.write_assets import write_assets
from lmmprune.compiler.bundle.bundle import PREPROCESSOR
from lmmprune.compiler.runtime.open_picture import MAX_PIXELS
from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.errors import InputError, ModelError
from lmmprune.models.source import resolve

FAST = {
    "image_processor_type": "CLIPImageProcessorFast", "data_format": "channels_first", "device": None,
    "disable_grouping": None, "input_data_format": None, "return_tensors": None, "default_to_square": False,
    "do_convert_rgb": None, "crop_pct": None, "image_grid_pinpoints": [[8, 16]],
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "numbers": {"size": 8, "crop_size": 8},
    "a square": {"size": {"height": 8, "width": 8}, "do_center_crop": False},
    "an old extractor": {"image_processor_type": "REMOVE", "feature_extractor_type": "CLIPFeatureExtractor"},
    "the model's own": {"image_processor_type": "REMOVE"},
    "a fast one": FAST,
    "nothing rescaled": {"do_rescale": None, "image_mean": [100, 110, 120], "image_std": [50, 60, 70]},
    "nothing normalized": {"do_normalize": False},
    "bilinear": {"resample": 2},
    "defaults of the class": {name: "REMOVE" for name in ("image_mean", "image_std", "resample", "rescale_factor")},
    "steps of the class": {name: "REMOVE" for name in ("do_center_crop", "do_resize", "do_rescale", "do_normalize")},
    "padded to a square": {"image_processor_type": "LlavaImageProcessor", "do_pad": True},
    "padded by a fast one": {"image_processor_type": "LlavaImageProcessorFast", "do_pad": True},
    "padded in black": {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "do_normalize": False,
                        "image_mean": "REMOVE", "image_std": "REMOVE"},
    "padded to the batch": {"do_pad": True},
    "never padded": {"image_processor_type": "LlavaImageProcessor", "do_pad": False},
    "another class": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 8, "width": 8},
                      "crop_size": "REMOVE", "do_center_crop": "REMOVE"},
}  # fmt: skip
SIZES = ((8, 8), (33, 10), (10, 33), (7, 5), (1, 40), (9, 64))


def checkpoint(folder: Path, changes: dict[str, Any]) -> Path:
    """Write a checkpoint whose preprocessor_config.json has these settings, without those to remove."""
    made = pc.checkpoint(folder, {})
    raw = json.loads((made / "preprocessor_config.json").read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in raw.items() if value != "REMOVE"}
    (made / "preprocessor_config.json").write_text(json.dumps(kept), encoding="utf-8")
    return made


def same_pixels(folder: Path) -> Preprocessor:
    (folder / "out").mkdir()
    write_assets(resolve(str(folder), weights="dummy"), folder / "out")
    ours = Preprocessor.load(folder / "out" / PREPROCESSOR)
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")
    for width, height in SIZES:
        noise = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        np.testing.assert_array_equal(ours(image), theirs(image, return_tensors="np")["pixel_values"])
    return ours


@pytest.mark.parametrize("name", sorted(CASES))
def test_pixels_are_transformers_own(name: str, tmp_path: Path) -> None:
    ours = same_pixels(checkpoint(tmp_path / "model", CASES[name]))
    assert (ours.square is not None) is (name in ("padded to a square", "padded by a fast one", "padded in black"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK"])
def test_transparency_is_laid_over_white_as_processors_do(mode: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", {})
    (folder / "out").mkdir()
    write_assets(resolve(str(folder), weights="dummy"), folder / "out")
    noise = np.random.default_rng(1).integers(0, 256, (9, 11, 4), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    ours = Preprocessor.load(folder / "out" / PREPROCESSOR)(image)
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")(image, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(ours, theirs)


def test_a_nested_processor_comes_first(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", {"image_mean": [0.1, 0.1, 0.1]})
    nested = {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 8}, "resample": 3,
        "crop_size": {"height": 8, "width": 8}, "image_mean": [0.2, 0.3, 0.4], "image_std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    file = folder / "processor_config.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**raw, "image_processor": nested}), encoding="utf-8")
    assert same_pixels(folder).mean == (0.2, 0.3, 0.4)


def test_a_picture_too_narrow_to_pad_is_refused(tmp_path: Path) -> None:
    ours = same_pixels(checkpoint(tmp_path / "model", CASES["padded to a square"]))
    side = int(MAX_PIXELS**0.5) + 1
    with pytest.raises(InputError, match=f"the picture is 1 x {side} pixels, and this model pads it to a square"):
        ours(Image.new("RGB", (1, side)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_pad": True, "pad_size": {"height": 8, "width": 8}}, "has 'do_pad' on"),
        ({"do_pad": True, "image_processor_type": "OwnImageProcessor"}, "OwnImageProcessor has 'do_pad' on"),
        ({"do_thumbnail": True}, "has 'do_thumbnail' on"),
    ],
)
def test_steps_of_others_are_refused(changes: dict[str, Any], message: str) -> None:
    raw = {
        "size": {"height": 8, "width": 8},
        "image_mean": [0.5],
        "image_std": [0.5],
        "image_processor_type": "CLIPImageProcessor",
    }
    assert preprocessing(raw, (8, 8))["resize"] == {"height": 8, "width": 8}
    with pytest.raises(ModelError, match=re.escape(message)):
        preprocessing(raw | changes, (8, 8))
