"""ONNX files as a hub's cache, converters and accidents leave them: links, data elsewhere, any order, damage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attention_styles as st
import foreign_towers as ft
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.transformers.float16 import convert_float_to_float16

from lmmprune.compiler.onnx_files.load_onnx import load_onnx
from lmmprune.errors import InputError

Cli = Callable[..., tuple[int, str, str]]
DATA = "model.onnx_data"


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """Return a model as it lies in a hub's cache: links by name to files by their digest."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "rev"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    model = onnx.load_from_string(st.exported(st.Unbound, 17, batch=1))
    settings: dict[str, Any] = {"save_as_external_data": True, "location": DATA, "size_threshold": 64}
    onnx.save(model, blobs / "model.onnx", **settings)
    for name, digest in (("model.onnx", "aaa"), (DATA, "bbb")):
        (blobs / name).rename(blobs / digest)
        (snapshot / name).symlink_to(Path("../../blobs") / digest)
    return snapshot / "model.onnx"


def other(hub: Path, change: Callable[[onnx.StringStringEntryProto], None]) -> Path:
    """Return a copy of the hub's model without links, each entry of external data changed."""
    folder = hub.parents[2] / "other"
    folder.mkdir()
    model = onnx.load(hub, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            change(entry)
    onnx.save(model, folder / "model.onnx")
    shutil.copyfile(hub.parent / DATA, folder / DATA)
    return folder / "model.onnx"


def refused(cli: Cli, path: Path) -> str:
    """Return the one line that both commands say about a file."""
    lines = []
    for words in (("rewrite", path, "--keep", 9, "-o", path.parent / "out.onnx"), ("inspect", path)):
        code, _, err = cli(*words)
        assert (code, err.count("\n")) == (2, 1), err
        lines.append(err)
    assert lines[0] == lines[1]
    return lines[0]


def linked_hard(hub: Path) -> Path:
    folder = hub.parents[2] / "hard"
    folder.mkdir()
    for name in ("model.onnx", DATA):
        os.link((hub.parent / name).resolve(), folder / name)
    return folder / "model.onnx"


@pytest.mark.parametrize("find", [lambda path: path, linked_hard], ids=["symbolic", "hard"])
def test_weights_behind_links(
    find: Callable[[Path], Path], hub: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = find(hub), tmp_path / "out.onnx"
    ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    code, _, err = cli("rewrite", path, "-o", out)
    assert (code, err) == (0, "")
    expected = ft.answers(ft.exported("clip"), ft.pixels())
    for name, array in ft.answers(out.read_bytes(), ft.pixels()).items():
        np.testing.assert_allclose(array, expected[name], atol=5e-6)
    code, said, _ = cli("inspect", path)
    assert code == 0
    assert "sites vision_layer_0..2, vision_output, projector_output (for 'lmmprune rewrite'); 25 tokens" in said
    if path == hub:
        # A relative name, from another folder.
        monkeypatch.chdir(path.parent)
        assert cli("inspect", "model.onnx")[0] == 0


@pytest.mark.parametrize("where", ["../blobs/bbb", "a/../../blobs/bbb", "ABSOLUTE", ""])
def test_names_that_lead_out_of_the_folder(where: str, hub: Path, cli: Cli) -> None:
    where = str((hub.parent / DATA).resolve()) if where == "ABSOLUTE" else where

    def change(entry: onnx.StringStringEntryProto) -> None:
        entry.value = where if entry.key == "location" else entry.value

    found = refused(cli, other(hub, change))
    assert f"in '{where}': expected a file in the graph's own folder" in found


def test_data_that_is_gone_or_cut_off(hub: Path, cli: Cli) -> None:
    (hub.parents[2] / "blobs" / "bbb").rename(hub.parents[2] / "moved")
    assert f"in '{hub.parent / DATA}', which can't be read (No such file" in refused(cli, hub)
    (hub.parents[2] / "moved").rename(hub.parents[2] / "blobs" / "bbb")
    os.truncate(hub.parent / DATA, 1000)
    assert "which has 1000 (its length is said to be" in refused(cli, hub)


@pytest.mark.parametrize(("key", "value"), [("length", "4"), ("offset", "1000000000")])
def test_extents_that_dont_fit(key: str, value: str, hub: Path, cli: Cli) -> None:
    def change(entry: onnx.StringStringEntryProto) -> None:
        entry.value = value if entry.key == key else entry.value

    assert "the file is cut off or another graph's; copy it again" in refused(cli, other(hub, change))


def test_weights_beside_the_file_that_have_no_type(hub: Path, cli: Cli) -> None:
    path = other(hub, lambda entry: None)
    model = onnx.load(path, load_external_data=False)
    next(tensor for tensor in model.graph.initializer if tensor.external_data).ClearField("data_type")
    onnx.save(model, path)
    assert "says no type that has bytes" in refused(cli, path)


def test_structure_alone_needs_no_weights(hub: Path) -> None:
    (hub.parents[2] / "blobs" / "bbb").unlink()
    assert load_onnx(hub, weights=False).graph.initializers
    with pytest.raises(InputError, match="can't be read"):
        load_onnx(hub)


@pytest.mark.parametrize("kept", [False, True])
def test_onnxruntimes_float16(kept: bool, tmp_path: Path, cli: Cli) -> None:
    """With its inputs kept in float32 the converter leaves casts behind those who read them."""
    path, out = tmp_path / "half.onnx", tmp_path / "out.onnx"
    model = onnx.load_from_string(st.exported(st.TokensFirst, 17, batch=1))
    onnx.save(convert_float_to_float16(model, keep_io_types=kept), path)
    code, _, err = cli("rewrite", path, "--keep", 9, "-o", out, "--method", "uniform")
    assert code == 0, err
    full = tmp_path / "full.onnx"
    cli("rewrite", ft.saved(tmp_path, st.exported(st.TokensFirst, 17, batch=1)), "--keep", 9, "-o", full,
        "--method", "uniform")  # fmt: skip
    found = ft.answers(out.read_bytes(), ft.pixels(), np.float16)
    expected = ft.answers(full.read_bytes(), ft.pixels())
    np.testing.assert_array_equal(found["kept_indices"], expected["kept_indices"])
    np.testing.assert_allclose(found["last_hidden_state"], expected["last_hidden_state"], atol=0.06)


def test_nodes_in_any_order_are_sorted(tmp_path: Path) -> None:
    model = onnx.load_from_string(st.exported(st.Unbound, 17, batch=1))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    onnx.save(model, tmp_path / "in.onnx")
    seen: set[str] = set()
    for node in load_onnx(tmp_path / "in.onnx").graph:
        made = {value.name for value in node.inputs if value is not None and value.producer() is not None}
        assert made <= seen
        seen |= {str(value.name) for value in node.outputs}
    assert len(seen) >= len(nodes)


def _circle(model: onnx.ModelProto) -> None:
    first, last = model.graph.node[3], model.graph.node[-1]
    first.input[0] = last.output[0]


def _nothing_makes_it(model: onnx.ModelProto) -> None:
    model.graph.node[-1].input[0] = "nowhere"


def _short(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def _no_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 0


def _attribute(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Transpose")
    node.attribute[0].CopyFrom(onnx.helper.make_attribute("perm", [0, 9, 1]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_circle, "make a circle, each waiting for another's output"),
        (_nothing_makes_it, "reads 'nowhere', which no input, weight or node of the graph is"),
        (_short, "can't be read (ValueError: "),
        (_no_type, "can't be read ("),
        (_attribute, "shape inference failed: "),
    ],
)
def test_damage_is_one_line(damage: Callable[[onnx.ModelProto], None], message: str, tmp_path: Path, cli: Cli) -> None:
    model = onnx.load_from_string(st.exported(st.Unbound, 17, batch=1))
    damage(model)
    path = tmp_path / "in.onnx"
    path.write_bytes(model.SerializeToString())
    code, _, err = cli("rewrite", path, "--keep", 9, "-o", tmp_path / "out.onnx")
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err
    # What is no graph at all isn't shown, either; what a node says wrong is a reason why no site is offered.
    code, out, err = cli("inspect", path)
    assert (code, message in (out if code == 0 else err)) == (0 if damage is _attribute else 2, True)


def test_bytes_that_were_lost_or_changed(tmp_path: Path, cli: Cli) -> None:
    data, path = st.exported(st.Unbound, 17, batch=1), tmp_path / "in.onnx"
    random = np.random.default_rng(2)
    said = set()
    for attempt in range(24):
        damaged = bytearray(data[: random.integers(len(data))] if attempt % 4 == 0 else data)
        for place in random.integers(len(damaged), size=3):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        code, _, err = cli("inspect", path)
        assert code in (0, 2)
        assert code == 0 or err.count("\n") == 1
        said.add(code)
    assert said == {0, 2}
