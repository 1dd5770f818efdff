"""`export --int4`: what it writes for each target, what the other commands make of it, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from exports import exported_again
from test_insert_int4 import stored_weights
from test_int8_options import TINY, answer, export, int8_share, operators

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.export import preflight
from lmmprune.compiler.export.values import Int4, Int8
from lmmprune.compiler.verify.verify import verify
from lmmprune.models.source import resolve

Cli = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[1] / "models" / "tiny_llava"
PRODUCTS = 29


def test_onnxruntimes_operator(tmp_path: Path, cli: Cli) -> None:
    report = export(cli, tmp_path / "w", "--int4", "--int4-group", 32)
    assert report["precision"] == {
        "dtype": "float32",
        "int8": None,
        "int4": {"group": 32, "method": "rtn"},
        "carried": None,
        "calibration": {"policy": "all", "decoder": {"float": [], "rounded": "rtn"}},
    }
    found = operators(tmp_path / "w")
    assert (found.count("MatMulNBits"), found.count("MatMul")) == (PRODUCTS, 0)
    assert set(int8_share(cli, tmp_path / "w").values()) == {"int4"}
    assert answer(tmp_path / "w")
    assert [check.name for check in verify(tmp_path / "w", samples=2) if not check.passed] == []
    code, out, _ = cli("flops", tmp_path / "w")
    assert code == 0
    assert out.count("equal") == 2
    code, out, _ = cli("inspect", tmp_path / "w")
    assert "weights of products: 0 in INT8, 29 in INT4, 0 in floating point" in out
    assert "quantized as s4-weights; in floating point: no block" in out


def test_what_is_stored_is_the_checkpoints_weights_but_for_half_a_step(tmp_path: Path, cli: Cli) -> None:
    from safetensors.numpy import load_file

    export(cli, tmp_path / "w", "--int4", "--keep-float", "decoder:lm_head")
    model = ir.load(tmp_path / "w" / "decoder.onnx")
    stored = stored_weights(model)
    assert len(stored) == PRODUCTS - 1
    raw = load_file(ROOT / "model.safetensors")
    for name, weight in stored.items():
        found = [array for key, array in raw.items() if name.removesuffix(".T").endswith(key.split("model.")[-1])]
        assert len(found) == 1, name
        wanted = found[0].astype(np.float32).T
        steps = np.abs(wanted.reshape(-1, 128, wanted.shape[1])).max(axis=1) / 7
        assert (np.abs(weight - wanted) <= np.repeat(steps, 128, axis=0) / 2 * (1 + 1e-5)).all(), name
    blocks = int8_share(cli, tmp_path / "w")
    assert {name for name, kind in blocks.items() if kind == "float"} == {"lm_head"}


@pytest.mark.parametrize(("target", "opset"), [("jetson-orin-jp6", 21), ("tensorrt-rtx", 23)])
def test_tensorrts_form(target: str, opset: int) -> None:
    path, report = exported_again(ratio=0.5, target=target, int4=Int4(group=64), dtype="float16")
    assert report.manifest.opset == opset
    model = ir.load(path / "decoder.onnx")
    found = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    assert len(found) == PRODUCTS
    for node in found:
        values, scale = node.inputs[:2]
        assert (values.dtype, scale.dtype) == (ir.DataType.INT4, ir.DataType.FLOAT16)
        assert (node.attributes["axis"].value, node.attributes["block_size"].value) == (0, 64)
    assert [check.name for check in verify(path, samples=2) if not check.passed] == []


def test_the_vision_tower_in_int8(tmp_path: Path, cli: Cli) -> None:
    options = ("--int4", "--int8-vision", "--calib-samples", 2, "--keep-float", "vision:projector")
    report = export(cli, tmp_path / "v", *options, "--keep-float", "decoder:layer_0.down")
    precision = report["precision"]
    assert (precision["int8"], precision["int4"]) == ("u8s8", {"group": 128, "method": "rtn"})
    assert precision["calibration"]["samples"] == 2
    assert precision["calibration"]["vision"]["float"] == ["projector"]
    assert precision["calibration"]["decoder"]["float"] == ["layer_0.down"]
    code, out, _ = cli("inspect", tmp_path / "v", "--json")
    assert code == 0
    vision, decoder = json.loads(out)["graphs"]
    assert [graph["int8"]["scheme"] for graph in (vision, decoder)] == ["u8s8", "s4-weights"]
    assert [graph["int8"]["findings"] for graph in (vision, decoder)] == [[], []]
    assert {name for name, kind in vision["int8"]["blocks"].items() if kind == "float"} == {"projector"}
    assert (decoder["int4_matmuls"], decoder["float_matmuls"]) == (PRODUCTS - 1, 1)
    assert answer(tmp_path / "v")
    assert [check.name for check in verify(tmp_path / "v", samples=2) if not check.passed] == []


def test_size_and_memory_plan(tmp_path: Path, cli: Cli) -> None:
    """Weights of four bits with scales of 16 for each 128: 4.125 bits a number, what isn't a product in 16."""
    sizes = {}
    for name, how in {"float": {}, "int8": {"int8_weights_only": True}, "int4": {"int4": Int4()}}.items():
        path, report = exported_again(ratio=0.5, target="jetson-orin-jp6", **how)
        sizes[name] = report.manifest.files["decoder.onnx.data"].bytes
    products = 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384) + 128 * 63
    assert sizes["float"] - sizes["int4"] == pytest.approx(products * (16 - 4.125) / 8, rel=0.02)
    assert sizes["int4"] < 0.6 * sizes["int8"]
    code, _, err = cli("deploy", path, "--for", "jetson-orin-jp6", "-o", tmp_path / "o", "--ram", "1GiB")
    assert code == 2
    assert "--int4" not in err
    code, out, err = cli("deploy", path, "--for", "jetson-orin-jp6", "-o", tmp_path / "o", "--ram", "8GiB", "--json")
    assert code == 0, err
    weights = json.loads(out)["memory"]["parts"][0]
    assert (weights["name"], weights["bytes"]) == ("weights", Bundle.open(path).bytes)


def test_a_bundle_of_onnxruntime_isnt_built(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = exported_again(ratio=0.5, int4=Int4(group=32, vision=Int8(weights_only=True)))
    # A short name: an error's line has an end.
    shutil.copytree(path, tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("build", "b", "--target", "tensorrt-rtx", "--arch", "sm89")
    assert code == 2
    assert "its weights of four bits are written as MatMulNBits, which ONNX Runtime alone takes" in err
    assert "--int4 --int4-group 32 --int8-vision --target tensorrt-rtx" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--int4-group", 64), "--int4-group is for four-bit weights: add --int4"),
        (("--int8-vision",), "--int8-vision is for four-bit weights: add --int4"),
        (("--int4", "--int8"), "--int8 and --int4 exclude each other, each is a way to quantize: give one"),
        (("--int4", "--int4-group", 48), "--int4-group 48: target 'ort-cpu' takes groups of 32, 64, 128"),
        (
            ("--int4", "--int4-group", 32, "--target", "jetson-orin-jp6"),
            "--int4-group 32: target 'tensorrt-10.3' takes groups of 64, 128",
        ),
        (("--int4", "--keep-float", "vision:projector"), "with --int4 all of the vision tower stays in float"),
        (("--int4", "--keep-float", "lm_head"), "--keep-float lm_head: expected decoder:BLOCK"),
        (("--int4", "--keep-float", "decoder:x"), "no block 'x' to keep in floating point"),
        (("--int4", "--share-weights"), "--share-weights links the checkpoint's floating-point weights, --int4 makes"),
        (("--int4", "--int8-policy", "auto"), "--int8-policy is for graphs in INT8, and --int4 makes none"),
        (("--int4", "--no-smooth"), "--no-smooth is about ranges that are measured before, and --int4 has none"),
        (("--int4", "--calib-samples", 2), "--calib-samples is for what looks at pictures first"),
    ],
)
def test_what_cant_be_done(options: tuple[object, ...], message: str, tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli(*TINY, *options, "-o", tmp_path / "out")
    assert code == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_buckets_share_one_decoder(tmp_path: Path, cli: Cli) -> None:
    many = ("export", "--model", "tiny-llava", "--buckets", "0.5,0.75", "--method", "inflection", "-o", tmp_path / "b")
    code, _, err = cli(*many, "--int4")
    assert code == 0, err
    assert answer(tmp_path / "b")
    code, _, err = cli(*many, "--force", "--int4", "--int8-vision")
    assert code == 2
    assert "--buckets and --int8-vision don't go together yet" in err


def test_what_rounding_on_samples_takes_is_reckoned() -> None:
    source = resolve("llava-1.5-7b", weights="dummy")
    few, many = (preflight.rounding_needs(source, samples) for samples in (1, 32))
    # 7B in four bits and a tower in float32; a layer, and four matrices of 11008 x 11008.
    assert 4.0 < few.disk / 2**30 < 6.5
    assert 3.0 < few.memory / 2**30 < 5.0
    assert many.memory > few.memory
