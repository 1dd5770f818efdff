"""The model repository on disk: Triton's own protobuf reads it, and it says what the ONNX graphs say."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import runtime_fixtures as fx
from exports import exported_again
from shell import assert_clean
from triton_server import HOME, in_client, need_triton

from lmmprune.compiler.bundle import engines
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.engines import EngineRecord
from lmmprune.compiler.runtime.open_picture import decode_image, load_image
from lmmprune.compiler.runtime.preprocess import Preprocessor
from lmmprune.compiler.triton import dlpack
from lmmprune.compiler.triton.repository import Repository, write_repository
from lmmprune.errors import BundleError, InputError, TargetError

TYPES = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.BOOL: "TYPE_BOOL",
}
EXPORTS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "pruned": {"ratio": 0.5},
    "fastv": {"method": "fastv", "ratio": 0.5},
    "tensorrt-10.3": {"method": "fastv", "ratio": 0.5, "target": "tensorrt-10.3"},
}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Repository]:
    folder = tmp_path_factory.mktemp("repositories")
    return {
        name: write_repository(Bundle.open(exported_again(**options)[0]), folder / name)
        for name, options in EXPORTS.items()
    }


@pytest.fixture(scope="module")
def parsed(repositories: dict[str, Repository]) -> dict[tuple[str, str], dict[str, Any]]:
    """(Repository, model) -> its configuration, read by Triton's protobuf; an unknown field or name is an error."""
    need_triton()
    keys = [(name, model) for name, repository in repositories.items() for model in repository.models]
    paths = [str(repositories[name].path / model / "config.pbtxt") for name, model in keys]
    return dict(zip(keys, in_client("parse_triton.py", payload=paths), strict=True))


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("component", ["vision", "decoder"])
def test_configuration_is_the_graphs_signature(
    repositories: dict[str, Repository], parsed: dict[tuple[str, str], dict[str, Any]], name: str, component: str
) -> None:
    config = parsed[name, component]
    folder = repositories[name].path / component
    (path,) = folder.glob("*/*.onnx")
    graph = onnx.load(path, load_external_data=False).graph
    for values, rows in ((graph.input, config["input"]), (graph.output, config["output"])):
        expected = [
            (
                value.name,
                TYPES[value.type.tensor_type.elem_type],
                ["-1" if dim.dim_param else str(dim.dim_value) for dim in value.type.tensor_type.shape.dim],
            )
            for value in values
        ]
        assert [(row["name"], row["data_type"], row["dims"]) for row in rows] == expected
    assert config["name"] == component
    assert "max_batch_size" not in config, "0, which protobuf leaves out: the graphs are frozen at one picture"
    onnx.load(path)  # the weights are where the graph looks for them
    if component == "decoder":
        pasts = {row["dims"][2] for row in config["input"] if row["name"].startswith("past")}
        assert pasts == {"-1"}


def test_backends_and_instances(parsed: dict[tuple[str, str], dict[str, Any]]) -> None:
    decoder = parsed["pruned", "decoder"]
    assert (decoder["backend"], decoder["default_model_filename"]) == ("onnxruntime", "decoder.onnx")
    assert [(row["kind"], row["count"]) for row in decoder["instance_group"]] == [("KIND_CPU", 1)]
    engine = parsed["tensorrt-10.3", "decoder"]
    assert (engine["backend"], engine["default_model_filename"]) == ("tensorrt", "model.plan")
    # The profiles of the engine that `build` makes: prefill and decode.
    assert engine["instance_group"] == [{"kind": "KIND_GPU", "count": 1, "gpus": [0], "profile": ["0", "1"]}]
    assert "profile" not in parsed["tensorrt-10.3", "vision"]["instance_group"][0]
    answer = parsed["tensorrt-10.3", "lmmprune"]
    assert answer["model_transaction_policy"] == {"decoupled": True}
    assert answer["parameters"]["tensors"] == {"string_value": "gpu"}
    pixels = parsed["tensorrt-10.3", "preprocess"]["output"][0]
    assert pixels == parsed["tensorrt-10.3", "vision"]["input"][0]
    assert pixels["data_type"] == "TYPE_FP16"


def test_what_is_in_a_repository(repositories: dict[str, Repository]) -> None:
    repository, bundle = repositories["pruned"], exported_again(**EXPORTS["pruned"])[0]
    weights = repository.path / "decoder" / "1" / "decoder.onnx.data"
    assert weights.read_bytes() == (bundle / "decoder.onnx.data").read_bytes()
    # onnx refuses weights with several names, in the bundle too.
    assert (bundle / "decoder.onnx.data").stat().st_nlink == 1
    files = sorted(path.relative_to(repository.path).as_posix() for path in repository.path.rglob("*.py"))
    assert files == ["client.py", "lmmprune/1/model.py", "preprocess/1/model.py"]
    text = (repository.path / "README.md").read_text()
    assert "144 -> 72 visual tokens, float32" in text
    assert "opset 23" in text
    assert "build_engines.sh" not in text


def test_build_script_is_clean(repositories: dict[str, Repository]) -> None:
    assert_clean(repositories["tensorrt-10.3"].path / "build_engines.sh")


def test_engines_are_built_by_the_script(repositories: dict[str, Repository], tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(repositories["tensorrt-10.3"].path, repository)
    assert repositories["tensorrt-10.3"].engines_missing
    assert "sh build_engines.sh" in (repository / "README.md").read_text()
    trtexec = tmp_path / "bin" / "trtexec"
    trtexec.parent.mkdir()
    # A stand-in that finds the graph and its weights and writes what it was called with where the engine goes.
    trtexec.write_text(
        '#!/bin/sh\nfor word; do case "$word" in --onnx=*) ls "${word#*=}" "${word#*=}.data" >&2 || exit 1;;'
        ' --saveEngine=*) echo "$@" > "${word#*=}";; esac; done\n'
    )
    trtexec.chmod(0o755)
    path = f"{trtexec.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", str(repository / "build_engines.sh")], check=True, env={"PATH": path}, capture_output=True)
    assert [path.name for path in (repository / "vision" / "1").iterdir()] == ["model.plan"]
    called = (repository / "decoder" / "1" / "model.plan").read_text()
    assert "--stronglyTyped" in called
    assert "--profile=1" in called


@pytest.mark.parametrize("links", [True, False])
def test_engines_of_the_bundle_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    bundle = fx.make_bundle(tmp_path / "bundle", keep=4, target="tensorrt-10.3")
    folder = engines.directory(bundle, "tensorrt-10.3", "sm87")
    for component in ("vision", "decoder"):
        record = EngineRecord(
            component=component,
            target="tensorrt-10.3",
            arch="sm87",
            file=f"{component}.engine",
            bytes=0,
            sha256="",
            source=engines.sources(bundle, component),
            builder="tensorrt",
            version="10.3",
            seconds=1.0,
            dtype="float32",
            int8=None,
            profiles={},
            decomposed_attention=0,
        )
        engines.write_engine(folder, component.encode(), record)
    repository = write_repository(bundle, tmp_path / "r", arch="sm87")
    plan = repository.path / "decoder" / "1" / "model.plan"
    assert plan.read_bytes() == b"decoder"
    assert plan.samefile(folder / "decoder.engine") == links
    assert not repository.engines_missing
    assert not list(repository.path.rglob("*.onnx"))
    (folder / "decoder.engine").unlink()
    (folder / "decoder.engine").write_bytes(b"another")
    with pytest.raises(BundleError, match="isn't the engine that was built"):
        write_repository(bundle, tmp_path / "again", arch="sm87")
    assert not (tmp_path / "again").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    bundle = fx.make_bundle(tmp_path / "bundle", keep=4)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(InputError, match=r"the disk of .* is full"):
        write_repository(bundle, tmp_path / "deep" / "r")
    assert os.listdir(tmp_path) == ["bundle"]


@pytest.mark.parametrize(
    ("changes", "backend", "message"),
    [
        ({"target": "tensorrt-rtx"}, "default", "no backend for 'tensorrt-rtx'"),
        ({"target": "tensorrt-11"}, "python", "run graphs on the CPU, this bundle is for 'tensorrt-11'"),
        ({"precision": "bfloat16"}, "default", "can't hold bfloat16"),
    ],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], backend: str, message: str) -> None:
    bundle = fx.make_bundle(tmp_path / "bundle", keep=4)
    if "precision" in changes:
        changes = {"precision": dataclasses.replace(bundle.manifest.precision, dtype=changes["precision"])}
    bundle = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, **changes))
    with pytest.raises((TargetError, InputError), match=message):
        write_repository(bundle, tmp_path / "r", backend=backend)
    assert not (tmp_path / "r").exists()


def test_vision_graphs_with_other_inputs_are_refused(tmp_path: Path) -> None:
    bundle = fx.make_bundle(tmp_path / "bundle", keep=4)
    vision = bundle.manifest.vision
    vision = dataclasses.replace(vision, inputs=(*vision.inputs, dataclasses.replace(vision.inputs[0], name="grid")))
    bundle = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, vision=vision))
    with pytest.raises(TargetError, match="one input, this one takes pixel_values, grid"):
        write_repository(bundle, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_bundle_without_its_graphs(tmp_path: Path) -> None:
    repository = write_repository(fx.make_bundle(tmp_path / "bundle", keep=4), tmp_path / "r")
    folder = repository.path / "lmmprune" / "1"
    assert set(Bundle.open_assets(folder).manifest.files) == {"tokenizer.json", "preprocessor.json"}
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Bundle.open_assets(folder)


def test_pictures_from_bytes_are_those_from_disk(tmp_path: Path) -> None:
    path = fx.save_picture(tmp_path / "p.png", 3, 5, size=20)
    steps = Preprocessor.load(fx.make_bundle(tmp_path / "bundle").path / "preprocessor.json")
    np.testing.assert_array_equal(steps(decode_image(path.read_bytes(), "image")), steps(load_image(path)))
    with pytest.raises(InputError, match="'image' isn't a picture"):
        decode_image(b"", "image")


def test_models_need_only_the_base_install() -> None:
    need_triton()
    backend = HOME / "pytriton" / "tritonserver" / "backends" / "python"
    code = (
        f"import sys; sys.path.insert(0, {str(backend)!r})\n"
        "from lmmprune.compiler.triton import answer_model, graph_model, preprocess_model\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert {"triton_python_backend_utils", "tokenizers"} <= modules
    assert modules & {"torch", "transformers", "onnx", "onnx_ir", "onnxruntime"} == set()


@pytest.mark.parametrize("dtype", ["float16", "float32", "int64", "uint8", "bool"])
def test_what_a_capsule_says(dtype: str) -> None:
    whole = np.arange(48).reshape(4, 3, 4).astype(dtype)
    array = whole[1:]  # does not begin where its memory does
    capsule = array.__dlpack__()
    found = dlpack.read(capsule)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.address == array.ctypes.data
    assert dlpack.read(np.zeros((1, 0, 4), dtype).__dlpack__()).shape == (1, 0, 4)
