"""Graphs of a bundle are opened in one place: what can't be read, or isn't what the manifest says, is one line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edit_json
import onnx
import pytest
import runtime_fixtures as fx

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.engines import EngineRecord, read_records, write_engine
from lmmprune.compiler.bundle.hold_signature import as_found, hold_signature
from lmmprune.compiler.onnx_files.load_onnx import load_onnx
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.errors import BundleError, InputError

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fx.make_bundle(tmp_path / "out", keep=4)


def put(bundle: Bundle, name: str, content: bytes) -> None:
    """Replace a file of a bundle, with a checksum and a seal that hold."""
    import hashlib

    (bundle.path / name).write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_json.edit(bundle.path / "manifest.json", lambda raw: raw["files"].update({name: entry}))


def readers(bundle: Bundle) -> dict[str, list[Any]]:
    picture = fx.save_picture(bundle.path.parent / "p.png", 3)
    asked = ["--image", picture, "--prompt", "hi"]
    return {
        "run": ["run", bundle.path, *asked],
        "show": ["show", bundle.path, "--image", picture, "-o", bundle.path.parent / "d.png"],
        "inspect": ["inspect", bundle.path],
        "flops": ["flops", bundle.path],
        "bench": ["bench", bundle.path, *asked, "--no-memory"],
        "explain": ["bench", bundle.path, *asked, "--no-memory", "--explain"],
    }


@pytest.mark.parametrize("reader", ["run", "show", "inspect", "flops", "bench", "explain"])
@pytest.mark.parametrize("content", [b"", b"\x08\x0a\x12", b"no graph", "half"])
def test_a_damaged_graph_is_one_line(reader: str, content: Any, bundle: Bundle, cli: Call) -> None:
    data = bundle.vision.read_bytes()
    put(bundle, "vision.onnx", data[: len(data) // 2] if content == "half" else content)
    code, _, err = cli(*readers(bundle)[reader])
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "vision.onnx" in err
    assert "export" in err


def other(change: Callable[[onnx.ModelProto], object]) -> Callable[[bytes], bytes]:
    def make(data: bytes) -> bytes:
        model = onnx.ModelProto.FromString(data)
        change(model)
        return model.SerializeToString()

    return make


def rename(model: onnx.ModelProto) -> None:
    """Give an output another name, in a graph that can be computed."""
    model.graph.output[1].name = "places"
    for node in model.graph.node:
        node.input[:] = ["places" if name == "kept_indices" else name for name in node.input]
        node.output[:] = ["places" if name == "kept_indices" else name for name in node.output]


def test_onnxruntime_says_nothing_past_us(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    """It logs on its own, too, in colours, what it raises."""
    longer = other(lambda model: next(one for one in model.graph.initializer if one.name == "axis1").dims.append(3))
    put(bundle, "decoder.onnx", longer(bundle.decoder.read_bytes()))
    with pytest.raises(BundleError, match="can't load"):
        Runtime(Bundle.open(bundle.path))
    assert capfd.readouterr() == ("", "")


def test_onnx_ir_says_nothing_past_us(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    nowhere = other(lambda model: model.graph.output[0].__setattr__("name", "nowhere"))
    put(bundle, "decoder.onnx", nowhere(bundle.decoder.read_bytes()))
    with pytest.raises(InputError, match=r"nothing in '.*decoder.onnx' makes its output 'nowhere'"):
        load_onnx(bundle.decoder)
    assert caplog.records == []


TAKERS = {
    "plan": ("tensorrt-10.3", ["--target", "tensorrt-10.3", "--plan-only", "-o"]),
    "board": ("tensorrt-10.3", ["--for", "jetson-orin-jp6", "-o"]),
    "repository": ("ort-cpu", ["--triton"]),
}


@pytest.mark.parametrize("taker", TAKERS)
def test_what_is_taken_elsewhere_is_opened_before(taker: str, tmp_path: Path, cli: Call) -> None:
    target, options = TAKERS[taker]
    bundle = fx.make_bundle(tmp_path / "out", keep=4, dtype="float16", target=target)
    words = ["deploy" if taker == "board" else "build", bundle.path, *options, tmp_path / "made"]
    graph, weights = bundle.decoder.read_bytes(), (bundle.path / "decoder.data").read_bytes()
    half, fewer = graph[: len(graph) // 2], other(lambda model: model.graph.output.pop())
    for file, content in (
        *(("decoder.onnx", one) for one in (half, other(dangle)(graph), fewer(graph))),
        ("decoder.data", weights[:-4]),
    ):
        put(bundle, "decoder.onnx", graph)
        put(bundle, file, content)
        code, out, err = cli(*words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert file in err
        assert "export" in err or "copy it again" in err
        assert not (tmp_path / "made").exists()
    put(bundle, "decoder.data", weights)
    assert cli(*words)[0] == 0
    assert (tmp_path / "made").is_dir()


def dangle(model: onnx.ModelProto) -> None:
    """Let a node read what nothing makes."""
    model.graph.node[3].input[0] = "nowhere"


OTHERS = {
    "another size": (
        other(lambda model: model.graph.input[0].type.tensor_type.shape.dim[2].__setattr__("dim_value", 16)),
        "float32 [1, 3, 16, 8] for its input 'pixel_values', and not float32 [1, 3, 8, 8]",
    ),
    "another name": (other(rename), "lacks the output 'kept_indices'"),
    "an output less": (other(lambda model: model.graph.output.pop()), "lacks the output 'kept_indices'"),
    "another type": (
        other(lambda model: model.graph.output[1].type.tensor_type.__setattr__("elem_type", 6)),
        "kept_indices",
    ),
    "no type": (
        other(lambda model: model.graph.output[1].type.tensor_type.__setattr__("elem_type", 0)),
        "doesn't say the type or the shape of 'kept_indices'",
    ),
}


@pytest.mark.parametrize("reader", ["run", "inspect", "flops"])
@pytest.mark.parametrize("change", OTHERS)
def test_a_graph_of_another_signature_is_refused(change: str, reader: str, bundle: Bundle, cli: Call) -> None:
    make, message = OTHERS[change]
    put(bundle, "vision.onnx", make(bundle.vision.read_bytes()))
    code, out, err = cli(*readers(bundle)[reader])
    assert code == 2
    assert len(err.splitlines()) == 1
    # ONNX Runtime finds some of it itself.
    assert message in err or "can't load" in err
    assert out == ""


def test_names_of_dynamic_dimensions_may_differ(bundle: Bundle) -> None:
    decoder = bundle.manifest.decoder
    inputs = {
        name: (dtype, [None if dim == "past" else dim for dim in shape])
        for name, (dtype, shape) in as_found(decoder.inputs).items()
    }
    hold_signature(bundle.decoder, decoder, inputs, as_found(decoder.outputs))
    inputs["past_key_0"] = ("float32", [1, 2, 7, 4])
    with pytest.raises(
        BundleError, match=r"\[1, 2, 7, 4\] for its input 'past_key_0', and not float32 \[1, 2, past, 4\]"
    ):
        hold_signature(bundle.decoder, decoder, inputs, as_found(decoder.outputs))


RECORD = EngineRecord(
    component="vision",
    target="tensorrt-rtx",
    arch="sm89",
    file="vision.engine",
    bytes=0,
    sha256="",
    source={"vision.onnx": "x"},
    builder="tensorrt_rtx",
    version="1.7.1",
    seconds=1.5,
    dtype="float32",
    int8=None,
    profiles={"all": {"pixel_values": [[1, 3, 8, 8]] * 3}},
    decomposed_attention=0,
)

ENGINES: dict[str, Callable[[dict[str, Any]], object]] = {
    "expected int @ $.components['vision'].bytes": lambda row: row.update(bytes="4"),
    "components.vision.bytes is -1: expected a whole number in 0..": lambda row: row.update(bytes=-1),
    "components.vision.component is 'decoder': expected 'vision'": lambda row: row.update(component="decoder"),
    "components.vision.file is '': expected 1 to 200 letters": lambda row: row.update(file=""),
    "components.vision.profiles.all.pixel_values is [[1]]: expected three shapes": lambda row: row.update(
        profiles={"all": {"pixel_values": [[1]]}}
    ),
    "extra fields found (colour)": lambda row: row.update(colour="red"),
}


def test_a_record_of_engines_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = write_engine(tmp_path, b"plan", RECORD)
    assert {name: dataclasses.asdict(row) for name, row in read_records(tmp_path).items()} == {
        "vision": json.loads(json.dumps(dataclasses.asdict(written)))
    }


@pytest.mark.parametrize("message", ENGINES)
def test_a_record_of_engines_that_cant_be(message: str, tmp_path: Path) -> None:
    write_engine(tmp_path, b"plan", RECORD)
    edit_json.edit(tmp_path / "engine.json", lambda raw: ENGINES[message](raw["components"]["vision"]))
    with pytest.raises(BundleError) as caught:
        read_records(tmp_path)
    assert message in str(caught.value)
    assert str(caught.value).endswith("and build again")


def test_an_edited_record_of_engines_is_refused(tmp_path: Path) -> None:
    write_engine(tmp_path, b"plan", RECORD)
    file = tmp_path / "engine.json"
    file.write_text(file.read_text().replace("1.7.1", "1.7.2"))
    with pytest.raises(BundleError, match="it was changed after the build: its seal is missing or another"):
        read_records(tmp_path)
