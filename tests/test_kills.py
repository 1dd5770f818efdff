"""Killed before any of its changes of the disk, a writer leaves the old or the new, and the same call works again."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import runtime_fixtures as fx
from kill_points import killed_at_every_change

from lmmprune.compiler.bundle import engines, exchange
from lmmprune.compiler.bundle.atomic import replace_file
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.engines import EngineRecord
from lmmprune.compiler.bundle.replace import PLAN, STUDY, what_is_at
from lmmprune.compiler.bundle.write_bundle import write_bundle
from lmmprune.compiler.bundle.write_folder import write_folder, write_sums
from lmmprune.compiler.onnx_files.write_graph import write_graph
from lmmprune.compiler.study.folder import open_study, write_text
from lmmprune.errors import BundleError


@dataclass(frozen=True)
class Writer:
    """What writes ``old``, then ``new`` in its place, below a folder, and reads which of both is there.

    Attributes:
        write: Given the folder and a word.
        read: The word that is there, whole; "" if nothing is. It fails on anything between.
    """

    write: Callable[[Path, str], object]
    read: Callable[[Path], str]


def _write_bundle(folder: Path, word: str) -> None:
    with write_bundle(folder / "out", force=True) as writer:
        (writer.path / "sub").mkdir()
        for name in ("vision.onnx", "decoder.onnx"):
            (writer.path / name).write_bytes(b"\x08\x0a")  # no more than a version
        for name in ("tokenizer.json", "preprocessor.json", "sub/word"):
            (writer.path / name).write_text(word)
        writer.finish(MANIFEST)


def _read_bundle(folder: Path) -> str:
    with pytest.raises(BundleError, match=r"half a bundle|doesn't exist"):
        Bundle.open(folder / ".out.partial")
    if not (folder / "out").exists() and not (folder / ".out.lmmprune-old").exists():
        return ""
    bundle = Bundle.open(folder / "out")
    bundle.verify_checksums()
    return bundle.file("sub/word").read_text()


def _write_plan(folder: Path, word: str) -> None:
    with write_folder(folder / "out", PLAN, force=True) as plan:
        (plan / "plan.json").write_text('{"format": 1, "target": "", "variants": []}')
        (plan / "word").write_text(word)
        write_sums(plan, known={})


def _read_plan(folder: Path) -> str:
    if not (folder / "out").exists():
        return ""
    found = what_is_at(folder / "out")
    assert found is not None
    assert (found.kind, found.foreign) == (PLAN, None)
    lines = [line.split("  ") for line in (folder / "out" / "SHA256SUMS").read_text().splitlines()]
    assert [name for _, name in lines] == ["plan.json", "word"]
    for digest, name in lines:
        assert hashlib.sha256((folder / "out" / name).read_bytes()).hexdigest() == digest
    return (folder / "out" / "word").read_text()


def _write_graph(folder: Path, word: str) -> None:
    weight = ir.Value(name="w", const_value=ir.Tensor(np.full(400, len(word) + ord(word[0]), np.float32), name="w"))
    node = ir.node("Identity", [weight])
    graph = ir.Graph([], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 20}, name=word)
    node.outputs[0].name = "y"
    there = (folder / "out.onnx").exists()
    write_graph(ir.Model(graph, ir_version=10), folder / "out.onnx", force=there, inline=0)


def _read_graph(folder: Path) -> str:
    if not (folder / "out.onnx").exists():
        return ""
    model = onnx.load(folder / "out.onnx")
    word = str(model.graph.name)
    assert set(onnx.numpy_helper.to_array(model.graph.initializer[0])) == {len(word) + ord(word[0])}
    return word


RECORD = EngineRecord(
    **{name: "x" for name in ("component", "target", "arch", "file", "sha256", "builder", "version", "dtype")},
    **{"bytes": 0, "source": {}, "seconds": 0.0, "int8": None, "profiles": {}, "decomposed_attention": 0},
)


def _write_engine(folder: Path, word: str) -> None:
    record = dataclasses.replace(RECORD, component="vision", builder=word)
    engines.write_engine(folder / "out", word.encode(), record)


def _read_engine(folder: Path) -> str:
    record = engines.read_records(folder / "out").get("vision")
    if record is None:
        return ""
    assert engines.is_whole(folder / "out", record)
    assert (folder / "out" / record.file).read_text() == record.builder
    return record.builder


def _write_study(folder: Path, word: str) -> None:
    with open_study(folder / "out", {"model": word}, {}, force=word == "new" and (folder / "out").exists()) as study:
        write_text(study.path / "cells" / "a" / "result.json", word)


def _read_study(folder: Path) -> str:
    file = folder / "out" / "cells" / "a" / "result.json"
    found = what_is_at(folder / "out")
    if found is None:
        assert not file.exists()
        return ""
    assert (found.kind, found.foreign) == (STUDY, None)
    # A study whose cells aren't there yet goes on.
    assert not file.exists() or f"a study of {file.read_text()} with 1 finished variant" == found.text
    return found.text.split()[3]


def _write_file(folder: Path, word: str) -> None:
    with replace_file(folder / "out") as stream:
        stream.write(word.encode())


def _read_file(folder: Path) -> str:
    return (folder / "out").read_text() if (folder / "out").exists() else ""


WRITERS = {
    "bundle": Writer(_write_bundle, _read_bundle),
    "plan": Writer(_write_plan, _read_plan),
    "graph": Writer(_write_graph, _read_graph),
    "engine": Writer(_write_engine, _read_engine),
    "study": Writer(_write_study, _read_study),
    "file": Writer(_write_file, _read_file),
}


@pytest.fixture(scope="module", autouse=True)
def manifest(tmp_path_factory: pytest.TempPathFactory) -> None:
    global MANIFEST
    made = fx.make_bundle(tmp_path_factory.mktemp("made") / "out").manifest
    MANIFEST = dataclasses.replace(made, files={})


@pytest.mark.parametrize("before", ["", "old"])
@pytest.mark.parametrize("name", WRITERS)
def test_always_the_old_or_the_new(name: str, before: str, tmp_path: Path) -> None:
    _try_all(WRITERS[name], before, tmp_path)


def test_where_names_cant_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_renameat2", lambda: None)
    _try_all(WRITERS["bundle"], "old", tmp_path)


def _try_all(writer: Writer, before: str, tmp_path: Path) -> None:
    spare, folder = tmp_path / "spare", tmp_path / "work"
    spare.mkdir()
    if before:
        writer.write(spare, before)
    shutil.copytree(spare, folder)
    seen = set()
    for number in killed_at_every_change(lambda: writer.write(folder, "new"), folder):
        found = writer.read(folder)
        seen.add(found)
        assert found in {before, "new"}, f"killed at change {number}"
        if number >= 0:
            writer.write(folder, "new")
            assert writer.read(folder) == "new"
        # Nothing of the dead is left.
        left = _names(folder)
        assert not [name for name in left if name.startswith(".")], number
        assert sum(name.endswith(".data") for name in left) <= 1
        shutil.rmtree(folder)
        shutil.copytree(spare, folder)
    assert seen == {before, "new"}
    assert number == -1


def _names(folder: Path) -> list[str]:
    return [name for _, folders, files in os.walk(folder) for name in (*folders, *files)]
