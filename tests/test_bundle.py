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

import lmmprune
from lmmprune.compiler.bundle import seal
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


def tensor(raw: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in raw["decoder"]["inputs"] if one["name"] == name)
    return found


def deep(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


FAULTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "extra fields found (colour) @ $": lambda raw: raw.update(colour="red"),
    "required field missing @ $.cache.kv_heads": lambda raw: raw["cache"].pop("kv_heads"),
    "expected int @ $.image_tokens": lambda raw: raw.update(image_tokens="9"),
    "expected str @ $.target": lambda raw: raw.update(target=5),
    "expected int | str @ $.vision.inputs[0].shape[1]": lambda raw: raw["vision"]["inputs"][0]["shape"].insert(1, 2.5),
    "decoder.inputs 'input_ids'.shape is True: expected a whole number": lambda raw: raw["decoder"]["inputs"][0].update(
        shape=[True]
    ),
    "image_tokens is 3: expected 4, as scheduled": lambda raw: raw.update(image_tokens=3),
    "image_tokens is 17: expected a whole number in 1..16": lambda raw: raw.update(image_tokens=17),
    "schedule[0].tokens_out is 17: expected a whole number in 1..16": lambda raw: raw["schedule"][0].update(
        tokens_out=17
    ),
    "schedule[0].site is 'x': expected": lambda raw: raw["schedule"][0].update(site="x"),
    "decoder.inputs 'image_features' has the shape [1, 5, 8]: expected [1, 4, 8]": lambda raw: tensor(
        raw, "image_features"
    ).update(shape=[1, 5, 8]),
    "decoder.inputs 'input_ids' is int32: expected int64": lambda raw: tensor(raw, "input_ids").update(dtype="int32"),
    "decoder.inputs 'input_ids' is missing: expected": lambda raw: raw["decoder"]["inputs"].pop(0),
    "decoder.inputs 'more' is fed by nothing": lambda raw: raw["decoder"]["inputs"].append(
        {"name": "more", "dtype": "int64", "shape": [1]}
    ),
    "decoder.inputs 'past_key_0' has the shape [1, 2, 'past', 4]: expected [1, 3, any, 4]": lambda raw: raw[
        "cache"
    ].update(kv_heads=3),
    "cache.past, present and length_offsets have 2, 2 and 1 layers": lambda raw: raw["cache"]["length_offsets"].pop(),
    "cache has a capacity but no length": lambda raw: raw["cache"].update(capacity=9),
    "kept: vision.outputs has no 'places'": lambda raw: raw.update(kept="places"),
    "prompt.template is 'hello': expected '<image>' in it once": lambda raw: raw["prompt"].update(template="hello"),
    "prompt.strip is 'middle': expected '' or 'both'": lambda raw: raw["prompt"].update(strip="middle"),
    "positions is 'random': expected 'contiguous' or 'original'": lambda raw: raw.update(positions="random"),
    "grid is 0: expected a whole number in 1..65536": lambda raw: raw.update(grid=[0, 4]),
    "grid is 1000000000000000000000000000000000000000: expected a whole number": lambda raw: raw.update(
        grid=[10**39, 4]
    ),
    "model is 'a\\x1b[31m': expected": lambda raw: raw.update(model="a\x1b[31m"),
    "files 'vision.onnx'.sha256 is 'x'": lambda raw: raw["files"]["vision.onnx"].update(sha256="x"),
    "it holds NaN, which is no number": lambda raw: raw.update(average_tokens=float("nan")),
    "it is nested more than 64 deep": lambda raw: raw.update(parameters={"x": deep(70)}),
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


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a value that could be": lambda raw: raw.update(opset=21),
    "a name": lambda raw: raw.update(model="another"),
    "the seal": lambda raw: raw.update(seal="0" * 64),
    "no seal": lambda raw: raw.pop("seal"),
    "a seal that is a number": lambda raw: raw.update(seal=3),
}


@pytest.mark.parametrize("edited", EDITS)
def test_an_edited_manifest_is_read_only_on_request(bundle: Bundle, edited: str) -> None:
    file = bundle.path / "manifest.json"
    raw = json.loads(file.read_text())
    EDITS[edited](raw)
    file.write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=r"was changed after the export .*: export again, or .* --unsealed$"):
        Bundle.open(bundle.path)
    with seal.unsealed():
        assert Bundle.open(bundle.path).manifest.opset in (20, 21)
    with seal.unsealed(False), pytest.raises(BundleError):
        Bundle.open(bundle.path)


def test_blanks_and_the_order_of_keys_are_no_edit(bundle: Bundle) -> None:
    file = bundle.path / "manifest.json"
    raw = json.loads(file.read_text())
    file.write_text(json.dumps(dict(reversed(raw.items())), separators=(",", ":")))
    assert Bundle.open(bundle.path).manifest == bundle.manifest


def test_a_bundle_of_the_format_before_has_no_seal(bundle: Bundle) -> None:
    file = bundle.path / "manifest.json"
    raw = json.loads(file.read_text())
    del raw["seal"]
    file.write_text(json.dumps({**raw, "format": 3}))
    with pytest.raises(BundleError, match="has format 3, which has no seal to check it by: export again, or"):
        Bundle.open(bundle.path)
    with seal.unsealed():
        assert Bundle.open(bundle.path).manifest.image_tokens == 4


def test_unsealed_is_an_option_and_a_keyword(bundle: Bundle, cli: Callable[..., tuple[int, str, str]]) -> None:
    file = bundle.path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "opset": 21}))
    picture = fx.save_picture(bundle.path.parent / "p.png", 3)
    words = ("run", bundle.path, "--image", picture, "--prompt", "hi", "--max-new-tokens", 2)
    code, _, err = cli(*words)
    assert code == 2
    assert "--unsealed" in err
    assert cli(*words, "--unsealed")[0] == 0
    # It ends with its command.
    assert cli(*words)[0] == 2
    with lmmprune.load(bundle.path, unsealed=True) as model:
        assert model.manifest.opset == 21
    with pytest.raises(BundleError, match="--unsealed"):
        lmmprune.load(bundle.path)


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
