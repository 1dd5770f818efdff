"""``--triton`` as the user meets it: what is said, what is written, and one line for every mistake."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exports
import pytest
import runtime_fixtures as fx

from lmmprune.models import canonical

Cli = Callable[..., tuple[int, str, str]]


def test_build_writes_a_repository_of_a_bundle(cli: Cli, tmp_path: Path) -> None:
    fx.make_bundle(tmp_path / "bundle", keep=4)
    code, out, _ = cli("build", tmp_path / "bundle", "--triton", tmp_path / "r", "--triton-backend", "python")
    assert code == 0
    assert out.splitlines() == [
        f"Triton model repository in '{tmp_path / 'r'}' (preprocess, vision, decoder, lmmprune; python backend)"
    ]
    code, out, _ = cli("build", tmp_path / "bundle", "--triton", tmp_path / "again", "--json")
    assert (code, json.loads(out)) == (0, {"engines": [], "triton": str(tmp_path / "again")})


def test_export_writes_bundle_and_repository(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exports.exported_again(ratio=0.5)  # has the trace that the command shall take
    monkeypatch.setattr(canonical, "canonical_graphs", lambda source, **_: exports.TRACED(source))
    common = ("export", "--model", "tiny-llava", "--ratio", 0.5, "-o", tmp_path / "out")
    code, out, _ = cli(*common, "--triton", tmp_path / "r", "--json")
    assert code == 0
    assert json.loads(out)["triton"] == str(tmp_path / "r")
    assert (tmp_path / "r/vision/1/vision.onnx").read_bytes() == (tmp_path / "out/vision.onnx").read_bytes()


EXPORT: tuple[Any, ...] = ("export", "--model", "tiny-llava", "-o", "{out}/bundle")
MISTAKES: dict[str, tuple[tuple[Any, ...], str]] = {
    "not empty": ((*EXPORT, "--triton", "{made}"), "isn't empty"),
    "a file": ((*EXPORT, "--triton", "{made}/file"), "is a file: give a directory for the model repository"),
    "inside of the bundle": ((*EXPORT, "--triton", "{out}/bundle/r"), "lie inside of each other"),
    "around the bundle": ((*EXPORT, "--triton", "{out}"), "lie inside of each other"),
    "no backend": ((*EXPORT, "--triton", "{out}/r", "--target", "tensorrt-rtx"), "--target tensorrt-11"),
    "python on a GPU": (
        (*EXPORT, "--triton", "{out}/r", "--target", "ort-cuda", "--triton-backend", "python"),
        "this bundle is for 'ort-cuda'",
    ),
    "bfloat16": ((*EXPORT, "--triton", "{out}/r", "--target", "trt", "--dtype", "bfloat16"), "--dtype float16"),
    "unknown target": ((*EXPORT, "--triton", "{out}/r", "--target", "tensort-11"), "did you mean 'tensorrt-11'"),
    "backend alone": ((*EXPORT, "--triton-backend", "python"), "add --triton DIR"),
    "unknown backend": ((*EXPORT, "--triton", "{out}/r", "--triton-backend", "x"), "'x' is not one of"),
    "engines of another target": (
        ("build", "{made}/bundle", "--triton", "{out}/r", "--target", "tensorrt-11"),
        "the bundle's own target 'ort-cpu'",
    ),
    "some engines": (("build", "{made}/bundle", "--triton", "{out}/r", "--component", "vision"), "every graph"),
    "architecture without engines": (
        ("build", "{made}/bundle", "--triton", "{out}/r", "--arch", "sm89"),
        "--arch is for",
    ),
    "prompts without engines": (
        ("build", "{made}/bundle", "--triton", "{out}/r", "--max-prompt", "99"),
        "'ort-cpu' has none",
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton-cli")
    fx.make_bundle(folder / "bundle", keep=4)
    (folder / "file").touch()
    return folder


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line_and_come_first(
    cli: Cli, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    def slow(*_: object, **__: object) -> None:
        raise AssertionError("the model was traced")

    monkeypatch.setattr(canonical, "canonical_graphs", slow)
    arguments, message = MISTAKES[case]
    code, out, err = cli(*(str(argument).format(made=made, out=tmp_path) for argument in arguments))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert os.listdir(tmp_path) == []
