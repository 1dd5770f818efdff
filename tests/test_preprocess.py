from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import runtime_fixtures as fx
from PIL import Image

from lmmprune.compiler.runtime.open_picture import load_image
from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.errors import BundleError, InputError

MODES = ("RGB", "RGBA", "L", "LA", "P", "P transparent", "1", "CMYK", "I;16")
SIZES = ((333, 1000), (17, 5), (640, 480), (96, 96), (335, 337), (1, 30), (224, 225))  # width, height


def noise(mode: str, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng([width, height])
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 2**16, (height, width), dtype=np.uint16))
    image = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
    if mode == "RGBA":
        return image
    if not mode.startswith("P"):
        return image.convert(mode)
    palette = image.convert("RGB").convert("P")
    if mode == "P transparent":
        palette.info["transparency"] = 3
    return palette


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("size", "crop"),
    [
        ({"shortest_edge": 336}, (336, 336)),
        ({"shortest_edge": 100}, (137, 64)),
        ({"height": 50, "width": 71}, (50, 71)),
        (None, (96, 97)),
        (None, None),
    ],
)
def test_equals_the_reference_bit_for_bit(mode: str, size: dict[str, int] | None, crop: tuple[int, int] | None) -> None:
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    reference = clip.CLIPImageProcessorPil(
        do_resize=size is not None,
        do_center_crop=crop is not None,
        **({"size": size} if size else {}),
        **({"crop_size": {"height": crop[0], "width": crop[1]}} if crop else {}),
    )
    resize = size and (size.get("shortest_edge") or (size["height"], size["width"]))
    ours = Preprocessor(
        resize=resize,
        resample=Image.Resampling.BICUBIC,
        crop=crop,
        rescale=reference.rescale_factor,
        mean=tuple(reference.image_mean),
        std=tuple(reference.image_std),
    )
    for width, height in SIZES:
        image = noise(mode, width, height)
        expected = np.asarray(reference(image, return_tensors="np")["pixel_values"])
        found = ours(image)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_loads_the_bundle_file(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor.json"
    path.write_text(fx.PREPROCESSOR)
    loaded = Preprocessor.load(path)
    assert (loaded.resize, loaded.crop, loaded.resample) == (8, (8, 8), Image.Resampling.BICUBIC)
    values = loaded(Image.new("RGB", (20, 30), (255, 0, 51)))
    assert values.shape == (1, 3, 8, 8)
    np.testing.assert_allclose(values[0, :, 0, 0], [1, -1, -0.6], atol=1e-6)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"resize": {"longest": 3}}', fx.PREPROCESSOR.replace("bicubic", "x")]
)
def test_damaged_bundle_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "preprocessor.json"
    path.write_text(text)
    with pytest.raises(BundleError, match="export again"):
        Preprocessor.load(path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tiles": [2, 2], "resize": None}, "it has 'tiles' and no 'resize'"),
        ({"tiles": [0, 2]}, "'tiles' is 0: expected a whole number in 1.."),
        ({"resize": {"shortest_edge": 0}}, "'resize' is 0: expected a whole number"),
        ({"resize": {"height": 8, "width": -8}}, "'resize' is -8: expected a whole number"),
        ({"crop": [0, 8]}, "'crop' is 0: expected a whole number"),
        ({"longest_edge": 0}, "'longest_edge' is 0"),
        ({"longest_edge": "wide"}, "'longest_edge' is 'wide': expected a whole number"),
        ({"std": None}, "it has one of 'mean' and 'std'"),
        ({"mean": None}, "it has one of 'mean' and 'std'"),
        ({"mean": [0.5]}, r"'mean' is \[0.5\]: expected 3 numbers"),
        ({"mean": ["a", "b", "c"]}, "'mean' is .*: expected one number per colour"),
        ({"std": [1, 0, 1]}, r"'std' is \[1, 0, 1\]: expected one number per colour, not 0"),
        ({"square": [0, 0, 256]}, "'square' is 256: expected a whole number in 0..255"),
        ({"crop": [8.0, 8]}, "'crop' is 8.0: expected a whole number"),
        ({"crop": [10**30, 8]}, "'crop' is 10+: expected a whole number"),
        ({"crop": "88"}, "'crop' is '88': expected 2 numbers"),
        ({"resize": {"shortest_edge": 8, "width": 8}}, "'resize' is .*: expected shortest_edge, or height and width"),
        ({"resample": ["x"]}, "'resample' is .*: expected nearest"),
        ({"blur": 3}, "it has the unknown 'blur'"),
        ({"rescale": float("nan")}, "it holds NaN, which is no number"),
        ({"rescale": "1/255"}, "'rescale' is '1/255': expected a number"),
    ],
)
def test_steps_that_make_no_sense_are_refused(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    path = tmp_path / "preprocessor.json"
    path.write_text(json.dumps({**json.loads(fx.PREPROCESSOR), **changed}))
    with pytest.raises(BundleError, match=f"preprocessor.json' can't be used .*{message}.*: export again"):
        Preprocessor.load(path)


def test_steps_that_are_off(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor.json"
    path.write_text('{"resize": null, "resample": null, "crop": null, "rescale": null, "mean": null, "std": null}')
    values = Preprocessor.load(path)(Image.new("RGB", (3, 2), (7, 8, 9)))
    assert values[0, :, 1, 2].tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.png", None, "there is no picture"),
        ("empty.png", b"", "isn't a picture"),
        ("text.png", b"hello", "isn't a picture"),
        ("cut.png", fx.png_header(8, 8), "damaged"),
        ("bomb.png", fx.png_header(10_000, 10_001), "scale it down"),
        ("big-bomb.png", fx.png_header(2**31 - 1, 2**31 - 1), "scale it down"),
        ("nothing.png", fx.png_header(0, 5), "picture"),
    ],
)
def test_bad_pictures(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_image(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    noise("RGB", 200, 200).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="damaged"):
        load_image(path)


def test_directory_as_picture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory"):
        load_image(tmp_path)


def test_thin_picture_that_would_explode(tmp_path: Path) -> None:
    thin = Image.new("RGB", (60_000, 1))
    ours = Preprocessor(
        resize=336, resample=Image.Resampling.BICUBIC, crop=(336, 336), rescale=None, mean=None, std=None
    )
    with pytest.raises(InputError, match="crop it first"):
        ours(thin)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.jpg", exif=exif)
    assert load_image(tmp_path / "x.jpg").size == (10, 30)
