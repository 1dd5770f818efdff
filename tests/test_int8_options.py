"""The INT8 options of `export`: what they write, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from towers import Tower

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data import calibration as data
from lmmprune.compiler.runtime.open_picture import load_image
from lmmprune.compiler.runtime.runtime import Runtime

TINY = ("export", "--model", "tiny-llava", "--ratio", 0.5)
IMAGE = Path(__file__).parents[1] / "models" / "tiny_llava" / "examples" / "scene_003.png"
Cli = Callable[..., tuple[int, str, str]]


def export(cli: Cli, path: Path, *options: object) -> dict[str, Any]:
    code, out, err = cli(*TINY, *options, "-o", path, "--json")
    assert code == 0, err
    return dict(json.loads(out))


def operators(path: Path) -> list[str]:
    return [node.op_type for node in ir.load(path / "decoder.onnx").graph]


def int8_share(cli: Cli, path: Path) -> dict[str, str]:
    code, out, _ = cli("inspect", path, "--json")
    assert code == 0
    graphs = json.loads(out)["graphs"]
    assert [graph["int8"]["findings"] for graph in graphs] == [[], []]
    return dict(graphs[1]["int8"]["blocks"])


def answer(path: Path) -> str:
    runtime = Runtime(Bundle.open(path))
    return runtime.answer(load_image(IMAGE), "What digit is in the image?", 4).text


def test_weights_only_needs_no_pictures_and_quantizes_no_activation(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("pictures were looked for")

    monkeypatch.setattr(data, "load_calibration", never)
    report = export(cli, tmp_path / "w", "--int8-weights-only")
    assert report["precision"]["int8"] == "s8-weights"
    found = operators(tmp_path / "w")
    assert "QuantizeLinear" not in found
    assert found.count("DequantizeLinear") == 29
    assert set(int8_share(cli, tmp_path / "w").values()) == {"int8"}
    assert answer(tmp_path / "w")


def test_dynamic_ranges(tmp_path: Path, cli: Cli) -> None:
    report = export(cli, tmp_path / "d", "--int8-dynamic")
    assert report["precision"]["int8"] == "u8s8-dynamic"
    found = operators(tmp_path / "d")
    # q, k and v share one, so do gate and up: 4 per layer, and the head.
    assert (found.count("DynamicQuantizeLinear"), found.count("MatMulInteger")) == (17, 29)
    assert set(int8_share(cli, tmp_path / "d").values()) == {"int8"}
    assert answer(tmp_path / "d")


def test_what_was_done_is_in_the_manifest(tmp_path: Path, cli: Cli) -> None:
    options = ("--int8", "--calib-samples", 2, "--calibrator", "mse", "--keep-float", "decoder:lm_head")
    record = export(cli, tmp_path / "s", *options)["precision"]["calibration"]
    assert (record["method"], record["policy"], record["samples"]) == ("mse", "all", 2)
    assert record["decoder"]["float"] == ["lm_head"]
    assert record["vision"]["float"] == []
    assert len(record["decoder"]["smoothed"]) > 0
    assert all(0 < alpha <= 1 for alpha in record["decoder"]["smoothed"].values())
    blocks = int8_share(cli, tmp_path / "s")
    assert {name for name, kind in blocks.items() if kind == "float"} == {"lm_head"}
    weights = {v.name: v for v in ir.load(tmp_path / "s" / "decoder.onnx").graph.initializers.values()}
    gamma = [v for name, v in weights.items() if "input_layernorm" in name]
    assert gamma
    assert all(np.isfinite(v.const_value.numpy()).all() for v in gamma)
    plain = export(cli, tmp_path / "p", "--int8", "--calib-samples", 2, "--no-smooth")["precision"]["calibration"]
    assert "smoothed" not in plain["decoder"]


def test_one_sample_is_warned_about(tmp_path: Path, cli: Cli) -> None:
    report = export(cli, tmp_path / "one", "--int8", "--calib-samples", 1)
    assert any("single sample" in warning for warning in report["warnings"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--int8", "--calibrator", "entropi"), "no calibrator 'entropi'; did you mean 'entropy'?"),
        (("--int8", "--int8-policy", "some"), "--int8-policy some: expected all or auto"),
        (
            ("--int8", "--int8-policy", "auto", "--int8-budget", 2),
            "--int8-budget 2: expected a relative error, 0 < budget < 1",
        ),
        (("--int8", "--keep-float", "lm_head"), "--keep-float lm_head: expected vision:BLOCK or decoder:BLOCK"),
        (("--int8", "--calib-samples", 1, "--keep-float", "decoder:x"), "no block 'x' to keep in floating point"),
        (("--int8-policy", "auto"), "--int8-policy says how to quantize: add --int8"),
        (("--int8-weights-only", "--int8-dynamic"), "--int8-weights-only and --int8-dynamic exclude each other"),
        (("--int8-dynamic", "--target", "tensorrt-rtx"), "target 'tensorrt-rtx' takes no INT8 scheme 'u8s8-dynamic'"),
        (("--int8-dynamic", "--dtype", "float16"), "--int8-dynamic quantizes float32 activations, not float16"),
        (("--int8-dynamic", "--int8-policy", "auto"), "--int8-policy auto measures errors on calibration data"),
        (("--int8", "--calib", "no-such-folder"), "--calib 'no-such-folder' doesn't exist"),
    ],
)
def test_what_cant_be_done(options: tuple[object, ...], message: str, tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli(*TINY, *options, "-o", tmp_path / "out")
    assert code == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_another_tools_graph_is_checked(tmp_path: Path, cli: Cli) -> None:
    """What onnxruntime.quantization makes with its defaults for x86 breaks rules of TensorRT, and is told so."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    tower = Tower(patches=16, heads=4, width=8)
    ir.save(tower.graph(), tmp_path / "float.onnx")

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter([{"pixel_values": tower.inputs()}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "int8.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Add"],
    )
    code, out, _ = cli("inspect", tmp_path / "int8.onnx", "--target", "tensorrt-11", "--json")
    assert code == 0
    (graph,) = json.loads(out)["graphs"]
    assert graph["int8"]["scheme"] == "s8s8"
    broken = {finding["rule"] for finding in graph["int8"]["findings"]}
    assert broken >= {"symmetric", "activation-type", "per-channel", "stream"}
    assert all(finding["why"] and finding["node"] for finding in graph["int8"]["findings"])
    _, out, _ = cli("inspect", tmp_path / "int8.onnx")
    assert "quantized as u8s8" in out
    assert "broken rule" in out
