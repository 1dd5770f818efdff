"""A bfloat16 graph in ONNX Runtime's CPU provider: each result rounded, as the formula says."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from towers import run

from lmmprune.compiler.verify.replay import load_on_cpu, run_graph
from lmmprune.passes.graph.refusals import Broken
from lmmprune.passes.lower.emulate_bfloat16 import EmulateBfloat16

# An output that is read on, a sum over 512 places, a weight, a float32 island, an input of two nodes.
GRAPH = """<ir_version: 10, opset_import: ["": 23]>
g (bfloat16[3,512] x, bfloat16[4] b) => (bfloat16[3,512] h, bfloat16[3,4] y, bfloat16[4] twice) {
  h = Mul(x, x)
  s = MatMul(h, w)
  wide = Cast<to = 1>(s)
  t = Tanh(wide)
  narrow = Cast<to = 16>(t)
  y = Add(narrow, b)
  twice = Add(b, b)
}"""


def rounded(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((512, 4)).astype(ml_dtypes.bfloat16)


@pytest.fixture
def model(weight: np.ndarray) -> ir.Model:
    parsed = onnx.parser.parse_model(GRAPH)
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.BFLOAT16, weight.shape, weight.tobytes(), raw=True)
    parsed.graph.initializer.append(tensor)
    onnx.checker.check_model(parsed, full_check=True)
    return ir.from_proto(parsed)


def feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"x": rng.standard_normal((3, 512), np.float32), "b": rng.standard_normal(4, np.float32)}


def expected(weight: np.ndarray) -> dict[str, np.ndarray]:
    x, b = (rounded(array) for array in feeds().values())
    h = rounded(x * x)
    s = rounded(h.astype(np.float64) @ weight.astype(np.float64))
    return {"h": h, "y": rounded(rounded(np.tanh(s)) + b), "twice": 2 * b}


def test_every_result_is_rounded(model: ir.Model, weight: np.ndarray) -> None:
    assert EmulateBfloat16()(model).modified
    assert {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)} == {ir.DataType.FLOAT}
    assert [value.name for value in model.graph.outputs] == ["h", "y", "twice"]
    found = run(model, feeds())
    for name, values in expected(weight).items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    # float32 would have said something else.
    x, b = feeds().values()
    assert not np.allclose(found["y"], np.tanh((x * x) @ weight.astype(np.float32)) + b, rtol=0, atol=1e-4)
    assert not EmulateBfloat16()(model).modified


def test_the_optimizer_keeps_the_rounding(model: ir.Model, weight: np.ndarray, tmp_path: Path) -> None:
    ir.save(model, tmp_path / "g.onnx", external_data="g.data")
    before = (tmp_path / "g.onnx").read_bytes()
    for target in ("tensorrt-11", "ort-cpu"):
        session = load_on_cpu(tmp_path / "g.onnx", target, "bfloat16")
        given = {name: array.astype(ml_dtypes.bfloat16) for name, array in feeds().items()}
        for name, values in expected(weight).items():
            np.testing.assert_array_equal(run_graph(session, given)[name], values, err_msg=name)
    assert (tmp_path / "g.onnx").read_bytes() == before


def test_float32_graphs_stay() -> None:
    text = (
        GRAPH[: GRAPH.index("{")].replace("bfloat16", "float") + "{ h = Mul(x, x) y = MatMul(x, w) twice = Add(b, b) }"
    )
    text = text.replace("float[4] b)", "float[4] b, float[512,4] w)")
    assert not EmulateBfloat16()(ir.from_proto(onnx.parser.parse_model(text))).modified


def test_what_is_left_is_an_error(model: ir.Model) -> None:
    with pytest.raises(Broken, match=r"\(Mul\) still computes in bfloat16"):
        EmulateBfloat16().ensures(model)


def test_inputs_that_are_outputs_are_refused() -> None:
    head = '<ir_version: 10, opset_import: ["": 23]>'
    text = f"{head} g (bfloat16[4] b) => (bfloat16[4] y, bfloat16[4] b) {{ y = Neg(b) }}"
    with pytest.raises(ir.passes.PreconditionError, match="'b' is an output, too"):
        EmulateBfloat16()(ir.from_proto(onnx.parser.parse_model(text)))


def test_weights_are_widened_where_they_are_used(model: ir.Model) -> None:
    EmulateBfloat16()(model)
    (product,) = [node for node in model.graph if node.op_type == "MatMul"]
    nodes = list(model.graph)
    assert nodes[nodes.index(product) - 1].inputs[0] is model.graph.initializers["w"]
