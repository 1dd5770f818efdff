"""What lies outside of a bundle isn't read, and what isn't a file doesn't stop a command."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import runtime_fixtures as fx
from edit_json import edit
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmprune.compiler.bundle import engines
from lmmprune.compiler.bundle.bundle import Bundle, file_sha256
from lmmprune.compiler.bundle.external_data import external_files
from lmmprune.contained import stray
from lmmprune.errors import BundleError, InputError

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fx.make_bundle(tmp_path_factory.mktemp("made") / "out", keep=4).path


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


def seal(bundle: Path) -> None:
    """Let the manifest say that all files are what they should be."""

    def all_of_them(raw: dict[str, Any]) -> None:
        for name in raw["files"]:
            if (bundle / name).is_file():
                size = (bundle / name).stat().st_size
                raw["files"][name] = {"bytes": size, "sha256": file_sha256(bundle / name)}

    edit(bundle / "manifest.json", all_of_them)


def weights_elsewhere(bundle: Path, location: str) -> None:
    """Move the decoder's weights, and let its graph follow."""
    os.replace(bundle / "decoder.data", bundle / location)
    model = onnx.load(bundle / "decoder.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(model, bundle / "decoder.onnx")
    (bundle / "decoder.data").write_bytes(b"x")
    seal(bundle)


@pytest.mark.parametrize(
    "name", ["manifest.json", "tokenizer.json", "preprocessor.json", "decoder.onnx", "decoder.data"]
)
def test_a_link_that_leads_out_is_refused(bundle: Path, name: str, cli: Cli) -> None:
    os.replace(bundle / name, bundle.parent / name)
    (bundle / name).symlink_to(bundle.parent / name)
    code, out, err = cli("inspect", bundle)
    assert (code, out) == (2, "")
    assert f"'{name}' is not a file of the bundle" in err
    assert "is a link that leads out of it" in err
    (bundle / name).unlink()
    os.replace(bundle.parent / name, bundle / f"own-{name}")
    (bundle / name).symlink_to(f"own-{name}")
    Bundle.open(bundle)


def test_a_hub_cache_is_the_bundles_own(bundle: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    shutil.copytree(bundle, snapshot)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for file in list(snapshot.iterdir()):
        os.replace(file, blobs / f"sha-{file.name}")
        file.symlink_to(Path("../../blobs") / f"sha-{file.name}")
    Bundle.open(snapshot).verify_checksums()
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to(bundle / "tokenizer.json")
    with pytest.raises(BundleError, match="leads out"):
        Bundle.open(snapshot)
    # The place of the files may not be a way out either.
    os.rename(blobs, tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    assert stray(snapshot, "manifest.json") == "is a link that leads out of it"


@pytest.mark.parametrize("location", ["../weights", "sub/../../weights", "unlisted"])
def test_weights_outside_are_refused_before_anything_runs(
    bundle: Path, location: str, tmp_path: Path, cli: Cli
) -> None:
    (bundle / "sub").mkdir()
    weights_elsewhere(bundle, location)
    picture = fx.save_picture(tmp_path / "p.png", 3)
    for command in (
        ("run", bundle, "--image", picture, "--prompt", "hi"),
        ("inspect", bundle),
        ("build", bundle, "--triton", tmp_path / "served"),
    ):
        code, out, err = cli(*command)
        assert (code, out) == (2, ""), command
        assert f"has weights in '{location}', which isn't a file of the bundle" in err
    assert not (tmp_path / "served").exists()


def test_a_pipe_among_the_files_stops_nothing(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    os.mkfifo(bundle / "tokenizer.json")
    with pytest.raises(BundleError, match="it isn't a file"):
        Bundle.open(bundle)


def test_engines_are_neither_read_nor_written_through_links(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (bundle / "engines").symlink_to(tmp_path / "elsewhere")
    folder = engines.directory(Bundle.open(bundle), "tensorrt-rtx", "sm89")
    with pytest.raises(InputError, match="leads out of the bundle"):
        engines.write_engine(folder, b"plan", None)  # type: ignore[arg-type]  # refused before it is looked at
    assert not any((tmp_path / "elsewhere").iterdir())
    (tmp_path / "elsewhere" / folder.name).mkdir()
    (tmp_path / "elsewhere" / folder.name / "engine.json").write_text('{"components": {}}')
    with pytest.raises(BundleError, match="leads out"):
        engines.read_records(folder)


NAMES = st.text(st.sampled_from("ab./\\\0\n\u202e~"), max_size=12)


@given(name=NAMES)
@settings(max_examples=300, deadline=None)
def test_no_name_leads_out(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.getbasetemp() / "names"
    (root / "inner").mkdir(parents=True, exist_ok=True)
    for file in (root / "a", root / "b", root / "inner" / "a"):
        file.touch()
    if stray(root / "inner", name) is None:
        assert (root / "inner" / name).resolve().is_relative_to((root / "inner").resolve())
        assert not (root / "inner" / name).exists() or (root / "inner" / name).is_file()


@given(locations=st.lists(st.text(max_size=20), max_size=4), hidden=st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_location_is_found(locations: list[str], hidden: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The oracle is onnx's own protobuf; tensors may be deep in a branch, with the value before its key."""
    tensors = []
    for location in locations:
        tensor = onnx.numpy_helper.from_array(np.zeros(2, np.float32), "w")
        tensor.ClearField("raw_data")
        tensor.external_data.add(value=location, key="location")
        tensors.append(tensor)
    graph = onnx.helper.make_graph([], "location", [], [], initializer=tensors)
    if hidden:
        branch = onnx.helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
        graph = onnx.helper.make_graph([branch], "outer", [], [])
    file = tmp_path_factory.getbasetemp() / "locations.onnx"
    file.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    assert external_files(file) == set(locations)


def test_the_value_may_stand_before_its_key(tmp_path: Path) -> None:
    def field(number: int, value: bytes) -> bytes:
        return bytes([number << 3 | 2, len(value)]) + value

    entry = field(2, b"../x") + field(1, b"location")
    graph = field(5, field(13, entry))
    (tmp_path / "g.onnx").write_bytes(field(7, graph))
    assert external_files(tmp_path / "g.onnx") == {"../x"}


@given(data=st.binary(min_size=1, max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_graph_or_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "any.onnx"
    file.write_bytes(data)
    try:
        external_files(file)
    except BundleError as error:
        assert "isn't an ONNX file" in str(error)  # noqa: PT017  # both ends are right
