from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import runtime_fixtures as fx

from lmmprune.compiler.bundle import exchange
from lmmprune.compiler.bundle.manifest import Manifest
from lmmprune.compiler.bundle.write_bundle import write_bundle
from lmmprune.errors import InputError


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    found = fx.make_bundle(tmp_path / "made").manifest
    shutil.rmtree(tmp_path / "made")
    return found


def write(destination: Path, manifest: Manifest, content: str = "x", *, force: bool = False) -> None:
    with write_bundle(destination, force=force) as writer:
        (writer.path / "sub").mkdir()
        (writer.path / "sub" / "data").write_text(content)
        writer.finish(manifest)


def test_writes_manifest_with_sizes_and_checksums(tmp_path: Path, manifest: Manifest) -> None:
    with write_bundle(tmp_path / "out") as writer:
        assert writer.path.parent == tmp_path
        assert not (tmp_path / "out").exists()
        (writer.path / "a").write_bytes(b"abc")
        finished = writer.finish(manifest)
    assert finished.files["a"].bytes == 3
    assert finished.files["a"].sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert Manifest.load(tmp_path / "out" / "manifest.json") == dataclasses.replace(manifest, files=finished.files)
    assert os.listdir(tmp_path) == ["out"]


def test_missing_parents_are_made(tmp_path: Path, manifest: Manifest) -> None:
    write(tmp_path / "a" / "b" / "out", manifest)
    assert (tmp_path / "a" / "b" / "out" / "sub" / "data").is_file()


def test_an_empty_directory_is_written_to_and_a_bundle_replaced_if_told_to(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", manifest, "first")
    (tmp_path / "out" / "engines" / "sm89").mkdir(parents=True)
    (tmp_path / "out" / "engines" / "sm89" / "vision.engine").touch()
    with pytest.raises(InputError, match=r"holds a bundle of synthetic with 1 engine: .* --force to replace it"):
        write(tmp_path / "out", manifest, "second")
    assert (tmp_path / "out" / "sub" / "data").read_text() == "first"
    write(tmp_path / "out", manifest, "second", force=True)
    assert (tmp_path / "out" / "sub" / "data").read_text() == "second"
    assert not (tmp_path / "out" / "engines").exists()
    assert os.listdir(tmp_path) == ["out"]


def test_link_to_a_directory_is_followed(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    write(tmp_path / "out", manifest)
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "manifest.json").is_file()


def test_directory_with_something_else_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="isn't empty and isn't a bundle"):
        write(out, manifest, force=True)
    (out / "manifest.json").write_text('{"name": "a web site"}')
    with pytest.raises(InputError, match="isn't empty and isn't a bundle"):
        write(out, manifest)
    assert (out / "thesis.tex").read_text() == "precious"
    assert os.listdir(tmp_path) == ["out"]


def test_bundle_with_a_foreign_file_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    write(tmp_path / "out", manifest)
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"holds 'notes.txt'"):
        write(tmp_path / "out", manifest, force=True)


def test_file_in_the_way(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match="is a file"):
        write(tmp_path / "out", manifest)
    with pytest.raises(InputError, match="can't write below"):
        write(tmp_path / "out" / "below", manifest)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("bug")])
@pytest.mark.parametrize("before", ["absent", "bundle"])
def test_failure_leaves_what_was_there(tmp_path: Path, manifest: Manifest, error: BaseException, before: str) -> None:
    if before == "bundle":
        write(tmp_path / "x" / "out", manifest, "old")

    def fail() -> None:
        with write_bundle(tmp_path / "x" / "out", force=True) as writer:
            (writer.path / "data").write_text("new")
            raise error

    with pytest.raises(type(error)):
        fail()
    if before == "bundle":
        assert os.listdir(tmp_path / "x") == ["out"]
        assert (tmp_path / "x" / "out" / "sub" / "data").read_text() == "old"
    else:
        assert os.listdir(tmp_path) == []


def test_where_no_exchange_is_a_failed_rename_brings_the_old_bundle_back(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "out", manifest, "old")
    rename, calls = os.rename, []

    def failing(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(exchange, "_renameat2", lambda: None)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", manifest, "new", force=True)
    assert (tmp_path / "out" / "sub" / "data").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(InputError, match=r"is full .* nothing was written"), write_bundle(tmp_path / "x" / "out"):
        raise error
    assert os.listdir(tmp_path) == []


def test_forgotten_finish_is_our_bug(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="finish"), write_bundle(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == []


def test_interrupt_from_outside(tmp_path: Path) -> None:
    code = (
        "import sys, time; from lmmprune.compiler.bundle.write_bundle import write_bundle\n"
        "with write_bundle(sys.argv[1]) as w:\n"
        "    (w.path / 'data').write_text('x'); print('ready', flush=True); time.sleep(900)\n"
    )
    # Ctrl-C, and what `timeout` and a shutting-down machine send; Python itself ends by the former.
    for number, code_then in ((2, -2), (15, 143)):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        process.communicate()
        assert process.returncode == code_then
        assert os.listdir(tmp_path) == []
