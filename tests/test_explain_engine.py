"""What is known of an engine: types of its weights and its size, and the inspector's layers where there is a GPU."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from edit_json import edit
from exports import exported_again
from fake_trt import ILogger

from lmmprune.compiler.build.inspect_engine import count_precisions, graph_weights, inspect_engine, read_inspector
from lmmprune.compiler.bundle.engines import RECORD, EngineRecord, read_records
from lmmprune.compiler.cli import main
from lmmprune.errors import BundleError

# In the format of NVIDIA's documentation of the engine inspector, at the verbosity DETAILED.
INSPECTED: dict[str, Any] = {
    "Layers": [
        {
            "Name": "reformat_x",
            "LayerType": "Reformat",
            "Inputs": [{"Name": "x", "Dimensions": [1, 5, 8], "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [{"Name": "x1", "Dimensions": [1, 5, 8], "Format/Datatype": "Row major linear INT8 format"}],
            "TacticName": "",
            "Metadata": "[ONNX Layer: x/quantized]",
        },
        {
            "Name": "q_proj + k_proj",
            "LayerType": "CaskGemmMatrixMultiply",
            "Inputs": [{"Name": "x1", "Dimensions": [5, 8], "Format/Datatype": "Row major linear Int8 format"}],
            "Outputs": [{"Name": "y", "Dimensions": [5, 8], "Format/Datatype": "Row major linear FP16 format"}],
            "ParameterType": "MatrixMultiply",
            "Weights": {"Type": "Int8", "Count": 64},
            "Bias": {"Type": "Float", "Count": 0},
            "TacticName": "sm80_xmma_gemm_i8f16_i8i32_f32_tn_n",
            "TacticValue": "0x0000000000000001",
            "Metadata": "[ONNX Layer: node_q]\x1e[ONNX Layer: node_k[0]]",
        },
        {
            "Name": "lm_head",
            "LayerType": "gemm",
            "Inputs": [{"Name": "z", "Dimensions": [5, 8], "Format/Datatype": "Half"}],
            "Outputs": [{"Name": "logits", "Dimensions": [5, 8], "Format/Datatype": "BFloat16"}],
            "Weights": {"Type": "Half", "Count": 64},
            "TacticName": "sm80_xmma_gemm_f16f16",
        },
    ],
    "Bindings": ["x", "logits"],
}


def test_inspector_is_read() -> None:
    reformat, product, head = read_inspector(json.dumps(INSPECTED))
    assert (reformat.inputs, reformat.outputs, reformat.weights) == (("FLOAT",), ("INT8",), None)
    assert (reformat.tactic, reformat.precision) == (None, "FLOAT")
    assert product.nodes == ("node_q", "node_k[0]")
    assert (product.kind, product.weights, product.outputs) == ("CaskGemmMatrixMultiply", "INT8", ("FLOAT16",))
    assert product.tactic == "sm80_xmma_gemm_i8f16_i8i32_f32_tn_n"
    assert (head.nodes, head.precision, head.outputs) == ((), "FLOAT16", ("BFLOAT16",))
    assert count_precisions([reformat, product, head]) == {"INT8": 1, "FLOAT16": 1}


def test_engine_that_says_names_only() -> None:
    [layer] = read_inspector('{"Layers": ["node_of_gpu"], "Bindings": []}')
    assert (layer.name, layer.precision, count_precisions([layer])) == ("node_of_gpu", "unknown", {})


@pytest.mark.parametrize("text", ["", "{}", '{"Layers": [{}]}', "[1]", '{"Layers": [3]}'])
def test_inspector_that_cannot_be_read(text: str) -> None:
    with pytest.raises(BundleError, match="expected a list 'Layers'"):
        read_inspector(text)


@pytest.mark.parametrize("gpu", [True, False])
def test_engine_is_inspected_on_its_gpu(gpu: bool) -> None:
    inspector = SimpleNamespace(get_engine_information=lambda kind: json.dumps(INSPECTED))
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector) if gpu else None
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)
    trt: Any = SimpleNamespace(
        Runtime=lambda log: runtime,
        ILogger=ILogger,
        LayerInformationFormat=SimpleNamespace(JSON=1),
    )
    layers = inspect_engine(trt, b"plan")
    assert (layers is not None) == gpu


def test_weights_are_counted_by_type(tmp_path: Path) -> None:
    text = "g (float[1,8] x) => (float[1,8] y) { e = DequantizeLinear (w, s) m = MatMul (x, e) y = MatMul (m, v) }"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    arrays = {"w": np.ones((8, 8), np.int8), "s": np.float32(1), "v": np.ones((8, 8), np.float32)}
    arrays["i"] = np.zeros((3, 3), np.int64)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items())
    onnx.save(model, tmp_path / "g.onnx")
    found = graph_weights(tmp_path / "g.onnx")
    assert found is not None
    assert found.bytes == {"FLOAT": 256, "INT8": 64}
    assert found.float16_bytes == 256


def test_weights_on_a_board_without_onnx_ir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert graph_weights(tmp_path / "g.onnx") is None


def record(**changes: Any) -> EngineRecord:
    fields: dict[str, Any] = {field.name: "x" for field in dataclasses.fields(EngineRecord)}
    fields |= {"bytes": 100, "source": {}, "seconds": 1.0, "profiles": {}, "decomposed_attention": 0, "options": {}}
    fields |= {"weights": {"INT8": 40}, "float16_bytes": 80, "layers": None}
    return EngineRecord(**{**fields, **changes})


def test_record_before_weights_were_counted_is_read(tmp_path: Path) -> None:
    row = dataclasses.asdict(record(component="decoder"))
    for name in ("weights", "float16_bytes", "layers"):
        del row[name]
    (tmp_path / RECORD).write_text(json.dumps({"components": {"decoder": row}}))
    edit(tmp_path / RECORD, lambda raw: None)  # sealed
    old = read_records(tmp_path)["decoder"]
    assert (old.weights, old.float16_ratio, old.layers) == ({}, None, None)
    assert record().float16_ratio == 1.25


def test_build_says_what_went_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundles = {name: tmp_path / name for name in ("float16", "int8")}
    for name, copy in bundles.items():
        options = {"int8": True} if name == "int8" else {}
        shutil.copytree(exported_again(target="tensorrt-rtx", ratio=0.5, **options)[0], copy)
        with pytest.raises(SystemExit) as caught:
            main(["build", str(copy), "--arch", "sm89"])
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert "decoder: weights that went in: " in out
        assert (" INT8 + " in out) == (name == "int8")
    half, int8 = (read_records(copy / "engines" / "tensorrt-rtx-sm89")["decoder"] for copy in bundles.values())
    assert set(half.weights) == {"FLOAT16"}
    assert half.weights["FLOAT16"] == half.float16_bytes == int8.float16_bytes
    assert int8.weights["INT8"] > 0.9 * half.float16_bytes / 2
    assert half.float16_ratio is not None
    assert half.layers is None  # no GPU of that architecture here
