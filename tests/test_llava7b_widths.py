"""The real command at LLaVA-7B's widths, a few layers deep: sharded checkpoint, streamed export, INT8, an answer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.models import trace_cache
from lmmprune.models.registry import tiny_llava_dir

SCRIPTS = Path(__file__).parents[1] / "scripts"
GIB = 2**30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with the checkpoint; gigabytes that nobody looks at afterwards."""
    folder = tmp_path_factory.mktemp("wide")
    command = [
        sys.executable,
        str(SCRIPTS / "llava7b" / "make_dummy_checkpoint.py"),
        "--model",
        "llava-1.5-7b",
        "--layers",
        "2",
        "--vision-layers",
        "6",
    ]
    subprocess.run([*command, "-o", str(folder / "checkpoint")], check=True, capture_output=True)
    yield folder
    shutil.rmtree(folder)


def lmmprune(*arguments: object) -> dict[str, Any]:
    """Run the command in a process of its own, which has a peak of memory of its own."""
    command = [sys.executable, "-m", "lmmprune.compiler.cli", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def checked(bundle: Path) -> None:
    """Compare with PyTorch, whose decoder is too large to be widened as a whole."""
    from_checkpoint = ("--model", bundle.parent / "checkpoint")
    found = {check["name"]: check for check in lmmprune("verify", bundle, *from_checkpoint, "--samples", 1)["checks"]}
    assert all(check["passed"] for check in found.values()), found
    assert {"kept indices", "image features", "logits"} <= set(found)


def test_float16_is_streamed_or_linked(folder: Path) -> None:
    assert len(list((folder / "checkpoint").glob("*.safetensors"))) > 1
    export = ("export", "--model", folder / "checkpoint", "--dtype", "float16")
    assert lmmprune(*export, "--ratio", 0.5, "-o", folder / "copied")["peak_bytes"] < 1.5 * GIB
    copied = Bundle.open(folder / "copied")
    assert copied.bytes > 1.3 * GIB
    assert copied.manifest.image_tokens == 288
    checked(folder / "copied")
    assert lmmprune(*export, "--share-weights", "-o", folder / "linked")["peak_bytes"] < 1.5 * GIB
    own = [file for file in (folder / "linked").rglob("*") if file.is_file() and file.stat().st_nlink == 1]
    assert sum(file.stat().st_size for file in own) < 8 * 2**20


def test_int8_is_calibrated_layer_by_layer_and_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traces, cache = trace_cache.directory(), folder / "cache"
    cache.mkdir()
    (cache / "trace").symlink_to(traces)  # of the tests before; nothing else is there yet
    monkeypatch.setenv("LMMPRUNE_CACHE", str(cache))
    data = ("--calib", tiny_llava_dir() / "calib" / "calib.jsonl", "--calib-samples", 1)
    how = ("--ratio", 0.5, "--int8", "--no-smooth", "--static-cache", 480, *data)
    made = lmmprune("export", "--model", folder / "checkpoint", *how, "-o", folder / "int8")
    assert made["peak_bytes"] < 4 * GIB
    assert list((cache / "calibration").iterdir()), "calibration layer by layer leaves its state there"
    picture = tiny_llava_dir() / "examples" / "scene_003.png"
    said = lmmprune("run", folder / "int8", "--image", picture, "--prompt", "what?", "--max-new-tokens", 3)
    assert 1 <= len(said["tokens"]) <= 3
    assert len(said["kept_indices"]) == 288
    checked(folder / "int8")
