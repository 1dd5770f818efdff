from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runtime_fixtures as fx
from edit_json import edit

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.manifest import Manifest
from lmmprune.errors import BundleError


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fx.make_bundle(tmp_path / "out", keep=4)


def edit_manifest(bundle: Bundle, change: dict[str, object]) -> None:
    edit(bundle.path / "manifest.json", lambda raw: raw.update(change))


def test_opens_and_knows_its_files(bundle: Bundle) -> None:
    assert bundle.manifest.image_tokens == 4
    assert bundle.manifest.tokens_before == 16
    assert bundle.vision.is_file()
    assert bundle.decoder.is_file()
    assert set(bundle.manifest.files) == {
        "vision.onnx",
        "decoder.onnx",
        "decoder.data",
        "tokenizer.json",
        "preprocessor.json",
    }
    graphs = ("vision.onnx", "decoder.onnx", "decoder.data")
    assert bundle.bytes == sum((bundle.path / name).stat().st_size for name in graphs)
    bundle.verify_checksums()


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="doesn't exist: give the directory"):
        Bundle.open(tmp_path / "nowhere")


def test_file_instead_of_directory(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").touch()
    with pytest.raises(BundleError, match="is a file"):
        Bundle.open(tmp_path / "x.onnx")


def test_directory_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("name", ["vision.onnx", "decoder.data", "tokenizer.json"])
def test_missing_file(bundle: Bundle, name: str) -> None:
    (bundle.path / name).unlink()
    with pytest.raises(BundleError, match=rf"'{name}' is missing"):
        Bundle.open(bundle.path)


def test_truncated_file(bundle: Bundle) -> None:
    data = bundle.path / "decoder.data"
    size = data.stat().st_size
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(BundleError, match=rf"has {size - 1} bytes, exported were {size}"):
        Bundle.open(bundle.path)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_edited_small_file_is_found_at_opening(bundle: Bundle) -> None:
    flip(bundle.path / "preprocessor.json")
    with pytest.raises(BundleError, match=r"'preprocessor.json' .* was changed after the export"):
        Bundle.open(bundle.path)


def test_edited_large_file_is_found_by_verify(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmmprune.compiler.bundle.bundle._CHECKED_AT_OPEN", 100)
    flip(bundle.path / "decoder.data")
    opened = Bundle.open(bundle.path)
    with pytest.raises(BundleError, match=r"'decoder\.data'"):
        opened.verify_checksums()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}', '{"format": 4}', '{"format": 4, "cache": 3}'])
def test_damaged_manifest(bundle: Bundle, content: str) -> None:
    (bundle.path / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match="export again"):
        Bundle.open(bundle.path)


FAULTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "extra fields found (colour) @ $": lambda raw: raw.update(colour="red"),
    "required field missing @ $.cache.kv_heads": lambda raw: raw["cache"].pop("kv_heads"),
    "expected int @ $.image_tokens": lambda raw: raw.update(image_tokens="9"),
    "expected str @ $.target": lambda raw: raw.update(target=5),
    "expected int | str @ $.vision.inputs[0].shape[1]": lambda raw: raw["vision"]["inputs"][0]["shape"].insert(1, 2.5),
    "has format 2, this version reads format 4: export again": lambda raw: raw.update(format=2),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_manifest_that_doesnt_fit_names_the_field(bundle: Bundle, message: str) -> None:
    file = bundle.path / "manifest.json"
    raw = json.loads(file.read_text())
    FAULTS[message](raw)
    file.write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=re.escape(message)) as caught:
        Bundle.open(bundle.path)
    assert str(caught.value).endswith("export again")
    assert "\n" not in str(caught.value)


def test_a_manifest_is_read_as_it_was_written(bundle: Bundle) -> None:
    assert Manifest.load(bundle.path / "manifest.json") == bundle.manifest
    assert json.loads(bundle.manifest.to_json())["cache"]["past"][0] == ["past_key_0", "past_value_0"]


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret"])
def test_names_that_lead_out_of_the_bundle(bundle: Bundle, name: str) -> None:
    (bundle.path.parent / "secret").touch()
    files = json.loads((bundle.path / "manifest.json").read_text())["files"]
    edit_manifest(bundle, {"files": {**files, name: {"bytes": 0, "sha256": "0" * 64}}})
    with pytest.raises(BundleError, match="not a file of the bundle"):
        Bundle.open(bundle.path)


def test_unlisted_graph(bundle: Bundle) -> None:
    files = json.loads((bundle.path / "manifest.json").read_text())["files"]
    del files["vision.onnx"]
    edit_manifest(bundle, {"files": files})
    with pytest.raises(BundleError, match=r"doesn't list 'vision.onnx'"):
        Bundle.open(bundle.path)


def test_a_bundle_can_be_moved(bundle: Bundle, tmp_path: Path) -> None:
    shutil.move(bundle.path, tmp_path / "elsewhere")
    Bundle.open(tmp_path / "elsewhere").verify_checksums()
