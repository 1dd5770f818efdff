"""Pictures whose values are clipped, and texts that are none: one line each, wherever they come in."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import runtime_fixtures as fx
from PIL import Image

from lmmprune.compiler.data.calibration import load_calibration
from lmmprune.compiler.runtime.open_picture import decode_image, load_image
from lmmprune.errors import InputError, LmmpruneWarning
from lmmprune.models.source import resolve

Cli = Callable[..., tuple[int, str, str]]

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
CLIPPED = {
    "grey.png": ((RAMP * 65535).astype(np.uint16), "has 16-bit values of 0 to 65535: all above 255 turn white"),
    "grey.tif": ((RAMP * 1000).astype(np.int32), "has 32-bit values of 0 to 1000: all above 255 turn white"),
    "float.tif": (RAMP.astype(np.float32), "has floating-point values of 0 to 1: it turns black"),
    "signed.tif": ((RAMP * 300 - 20).astype(np.float32), "has floating-point values of -20 to 280"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warnings")
    fx.make_bundle(folder / "out", keep=4)
    fx.save_picture(folder / "fine.png", 1)
    for name, (values, _) in CLIPPED.items():
        Image.fromarray(values).save(folder / name)
    return folder


@pytest.mark.parametrize("name", sorted(CLIPPED))
def test_clipped_values_are_said(name: str, folder: Path) -> None:
    with pytest.warns(LmmpruneWarning) as caught:
        load_image(folder / name)
    (warning,) = caught
    assert CLIPPED[name][1] in str(warning.message)
    assert name in str(warning.message)
    with pytest.warns(LmmpruneWarning):
        decode_image((folder / name).read_bytes(), name)


def test_big_endian_values_are_seen_too(tmp_path: Path) -> None:
    values = (RAMP * 65535).astype(np.uint16)
    Image.frombytes("I;16B", (8, 8), values.astype(">u2").tobytes()).save(tmp_path / "big.tif")
    assert Image.open(tmp_path / "big.tif").mode == "I;16B"
    with pytest.warns(LmmpruneWarning, match="0 to 65535"):
        load_image(tmp_path / "big.tif")


def test_values_of_a_byte_say_nothing(tmp_path: Path) -> None:
    """Whatever type holds them: they stay what they are."""
    ramp = (RAMP * 255).round()
    for name, values in (
        ("a.png", ramp.astype(np.uint8)),
        ("b.tif", ramp.astype(np.float32)),
        ("c.png", ramp.astype(np.uint16)),
    ):
        Image.fromarray(values).save(tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = load_image(tmp_path / name).convert("RGB")
        np.testing.assert_array_equal(np.asarray(found)[..., 0], ramp)


def commands(folder: Path, picture: str, prompt: str) -> list[tuple[object, ...]]:
    row = {"image": picture, "prompt": prompt, "answer": "x"}
    (folder / "q.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n", encoding="utf-8")
    asked = ("--image", folder / picture, "--prompt", prompt)
    return [
        ("run", folder / "out", *asked, "--max-new-tokens", 2),
        ("show", folder / "out", *asked, "-o", folder / "drawn.png", "--force"),
        ("bench", folder / "out", *asked, "--rounds", 2, "--new-tokens", 2, "--no-memory"),
        ("eval", folder / "out", "--data", folder / "q.jsonl"),
    ]


@pytest.mark.parametrize("command", range(4), ids=["run", "show", "bench", "eval"])
def test_each_command_says_it_in_one_line(command: int, folder: Path, cli: Cli) -> None:
    code, _, err = cli(*commands(folder, "grey.png", "hi")[command])
    lines = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert (code, len(lines)) == (0, 1)
    assert "grey.png' has 16-bit values" in lines[0]
    assert "warning" not in cli(*commands(folder, "fine.png", "hi")[command])[2]


@pytest.mark.parametrize("command", range(4), ids=["run", "show", "bench", "eval"])
@pytest.mark.parametrize("prompt", ["a\udcff", "\ud800"])
def test_half_a_character_is_one_line(prompt: str, command: int, folder: Path, cli: Cli) -> None:
    code, out, err = cli(*commands(folder, "fine.png", prompt)[command])
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "isn't valid UTF-8" in err
    assert "\\ud" in err


def test_half_a_character_in_calibration_data(folder: Path) -> None:
    commands(folder, "fine.png", "\ud800")
    with pytest.raises(
        InputError, match=r"q.jsonl:1: expected an object in JSON per line \(it holds half a character, '\\ud800'"
    ):
        load_calibration(resolve("tiny-llava"), folder / "q.jsonl", 2)
