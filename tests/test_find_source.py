"""Where a bundle's model came from: no path of the exporting machine in it, and found again on another one."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import copy_tiny
from exports import exported_again
from fake_hub import COMMIT, Repository, serve
from short_request import short_request

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.manifest import FILENAME, Manifest, ModelSource
from lmmprune.compiler.export.export import export
from lmmprune.compiler.verify.find_source import find_source
from lmmprune.errors import InputError
from lmmprune.models.identity import identify
from lmmprune.models.registry import tiny_llava_dir

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of somebody's own, and the bundle of it."""
    place = tmp_path_factory.mktemp("somebodys")
    model = copy_tiny(place / "tuned", text={"rope_theta": 5000.0})
    export(short_request(model=str(model), output=place / "bundle", ratio=0.5, calibration=None))
    return model, place / "bundle"


def test_no_path_travels(tuned: tuple[Path, Path]) -> None:
    model, bundle = tuned
    text = (bundle / FILENAME).read_text(encoding="utf-8")
    assert str(model.parent) not in text
    manifest = Bundle.open(bundle).manifest
    assert (manifest.model, manifest.source.kind, manifest.source.name) == ("tuned", "directory", "tuned")
    assert manifest.source.revision is None


def test_a_pictures_folder_is_known_by_its_name(tmp_path: Path) -> None:
    shutil.copytree(tiny_llava_dir() / "calib", tmp_path / "mine")
    request = short_request(
        model="tiny-llava",
        output=tmp_path / "bundle",
        int8=True,
        smooth=False,
        calibration=tmp_path / "mine" / "calib.jsonl",
        calibration_samples=1,
    )
    export(request)
    assert str(tmp_path) not in (tmp_path / "bundle" / FILENAME).read_text(encoding="utf-8")


def test_a_directory_is_asked_for_and_found_elsewhere(tuned: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    model, bundle = tuned
    code, _, err = cli("verify", bundle, "--samples", 1)
    assert (code, err.count("\n")) == (2, 1)
    assert "exported from a directory 'tuned', and doesn't say where that lies: give it with --model" in err
    moved = shutil.copytree(model, tmp_path / "another name")
    code, out, err = cli("verify", bundle, "--samples", 1, "--model", moved, "--json")
    assert code == 0, err
    assert all(check["passed"] is not False for check in json.loads(out)["checks"])


def test_another_checkpoint_is_refused(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    manifest = Bundle.open(tuned[1]).manifest
    with pytest.raises(InputError, match=r"isn't what the bundle was exported from, 'tuned': .* --model"):
        find_source(manifest, str(copy_tiny(tmp_path / "other", text={"rope_theta": 7000.0})), None)


def test_an_alias_is_found_anywhere() -> None:
    manifest = exported_again(ratio=0.5)[1].manifest
    assert (manifest.source.kind, manifest.source.name) == ("alias", "tiny-llava")
    assert find_source(manifest, None, None).directory == tiny_llava_dir()


def test_an_alias_that_isnt_known_here_says_what_to_do() -> None:
    manifest = exported_again(ratio=0.5)[1].manifest
    newer = dataclasses.replace(manifest, source=ModelSource(kind="alias", name="newer-llava", digest="0"))
    with pytest.raises(InputError, match=r"no model 'newer-llava'.*; if its checkpoint lies elsewhere: --model DIREC"):
        find_source(newer, None, None)


def test_an_adapter_is_asked_for(tmp_path: Path) -> None:
    manifest = exported_again(ratio=0.5)[1].manifest
    merged = dataclasses.replace(manifest, adapter=ModelSource(kind="directory", name="lora", digest="0"))
    with pytest.raises(InputError, match="hold the adapter 'lora': say where it lies with --adapter"):
        find_source(merged, None, None)
    with pytest.raises(InputError, match="exported without one; leave it out"):
        find_source(manifest, None, tmp_path)


def test_what_a_hubs_cache_holds_is_known_by_its_revision(tmp_path: Path) -> None:
    snapshot = shutil.copytree(tiny_llava_dir(), tmp_path / "models--me--tiny" / "snapshots" / COMMIT)
    found = identify("me/tiny@v1", snapshot, snapshot / "model.safetensors")
    assert (found.kind, found.name, found.revision) == ("hub", "me/tiny", COMMIT)
    assert found.digest == identify("tiny-llava", tiny_llava_dir(), tiny_llava_dir() / "model.safetensors").digest


def test_a_model_of_the_hub_is_verified_on_another_machine(tmp_path: Path) -> None:
    """Exported here; another home, with an empty cache, fetches the revision that was exported, not a newer one."""
    files = {
        path.name: path.read_bytes() for path in tiny_llava_dir().iterdir() if path.suffix != ".md" and path.is_file()
    }
    with serve({"me/tiny": Repository(files=files)}) as hub:
        _lmmprune(hub.url, tmp_path / "here", "export", "--model", "me/tiny", "--ratio", 0.5, "-o", tmp_path / "out")
        source = Manifest.load(tmp_path / "out" / FILENAME).source
        assert (source.kind, source.name, source.revision) == ("hub", "me/tiny", COMMIT)
        shutil.rmtree(tmp_path / "here")
        checks = json.loads(
            _lmmprune(hub.url, tmp_path / "there", "verify", tmp_path / "out", "--samples", 1, "--json")
        )["checks"]
        assert {check["name"]: check["passed"] for check in checks}["logits"] is True
        assert (tmp_path / "there" / "hub" / "models--me--tiny" / "snapshots" / COMMIT).is_dir()


def _lmmprune(hub: str, home: Path, *arguments: object) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment: dict[str, Any] = {**clean, "HF_HOME": str(home), "HF_ENDPOINT": hub}
    command = [sys.executable, "-m", "lmmprune", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
