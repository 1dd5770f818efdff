"""Everything that replaces something, at its smallest: written with a word, and read back whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import runtime_fixtures as fx

from lmmprune.compiler.bundle import engines
from lmmprune.compiler.bundle.atomic import replace_file
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.engines import EngineRecord
from lmmprune.compiler.bundle.manifest import Manifest
from lmmprune.compiler.bundle.replace import PLAN, STUDY, what_is_at
from lmmprune.compiler.bundle.write_bundle import write_bundle
from lmmprune.compiler.bundle.write_folder import write_folder, write_sums
from lmmprune.compiler.onnx_files.write_graph import write_graph
from lmmprune.compiler.study.folder import open_study
from lmmprune.compiler.study.write_file import write_text
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


@functools.cache
def _manifest() -> Manifest:
    with tempfile.TemporaryDirectory() as folder:
        return dataclasses.replace(fx.make_bundle(Path(folder) / "out").manifest, files={})


def _write_bundle(folder: Path, word: str) -> None:
    with write_bundle(folder / "out", force=True) as writer:
        (writer.path / "sub").mkdir()
        for name in ("vision.onnx", "decoder.onnx"):
            (writer.path / name).write_bytes(b"\x08\x0a")  # no more than a version
        for name in ("tokenizer.json", "preprocessor.json", "sub/word"):
            (writer.path / name).write_text(word)
        writer.finish(_manifest())


def _read_bundle(folder: Path) -> str:
    with contextlib.suppress(BundleError):
        Bundle.open(folder / ".out.partial")
        raise AssertionError("a bundle in the making opens")
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


def leftovers(folder: Path) -> list[str]:
    """Return what a dead process left, and weights that no graph reads."""
    names = [name for _, folders, files in os.walk(folder) for name in (*folders, *files)]
    return [*(name for name in names if name.startswith(".")), *[name for name in names if name.endswith(".data")][1:]]


def copied(spare: Path, folder: Path) -> None:
    """Bring a folder back to how it was."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(spare, folder)
