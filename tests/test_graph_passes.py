"""Freezing, casting, counting: small passes on small graphs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from towers import Tower, run

from lmmprune.errors import GraphRefusal
from lmmprune.passes.cast_float import CastFloat
from lmmprune.passes.count_flops import count_flops
from lmmprune.passes.freeze_shapes import FreezeShapes, all_values
from lmmprune.passes.methods import get_method
from lmmprune.passes.select_tokens import SelectTokens
from lmmprune.passes.shapes import infer_shapes

SYMBOLIC = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[batch,4,8] x, float[8,6] w) => (float[batch,4,6] y) {
    y = MatMul(x, w)
}
"""


def test_freezing_gives_every_dimension_a_number() -> None:
    model = ir.from_onnx_text(SYMBOLIC)
    assert FreezeShapes(dims={"batch": 3})(model).modified
    assert [list(v.shape or []) for v in all_values(model)] == [[3, 4, 8], [8, 6], [3, 4, 6]]
    assert not FreezeShapes(dims={"batch": 3})(model).modified


def test_freezing_refuses_a_symbol_without_a_number() -> None:
    with pytest.raises(GraphRefusal, match="symbolic dimension 'batch'"):
        FreezeShapes()(ir.from_onnx_text(SYMBOLIC))


def test_flops_of_a_matmul_and_of_a_tower() -> None:
    assert count_flops(ir.from_onnx_text(SYMBOLIC), {"batch": 3}) == 2 * 3 * 4 * 8 * 6
    with pytest.raises(GraphRefusal, match="'batch' has no value"):
        count_flops(ir.from_onnx_text(SYMBOLIC))
    tower = Tower(patches=12, heads=2, width=4, layers=3)
    t, c, n = tower.tokens, tower.channels, tower.patches
    per_layer = 5 * 2 * t * c * c + 2 * 2 * t * t * c
    assert count_flops(tower.graph()) == 3 * per_layer + 2 * n * c * 5


@pytest.mark.parametrize("dtype", ["float16"])
def test_the_cast_keeps_scores_in_float32_and_the_answer_close(dtype: str) -> None:
    tower = Tower(patches=20, heads=2, width=8)
    model = tower.graph()
    SelectTokens(method=get_method("freepruner"), keep=7)(model)
    exact = run(model, {"pixel_values": tower.inputs()})
    assert CastFloat(dtype=dtype)(model).modified
    for node in model.graph:
        if node.op_type == "Softmax":
            assert node.outputs[0].dtype == ir.DataType.FLOAT
    found = run(model, {"pixel_values": tower.inputs().astype(np.float16)})
    assert found["image_features"].dtype == np.float16
    a, b = found["image_features"].astype(np.float32).ravel(), exact["image_features"].ravel()
    assert found["kept_indices"].tolist() == exact["kept_indices"].tolist()
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.9999
    assert not CastFloat(dtype=dtype)(model).modified


def test_the_cast_refuses_other_types() -> None:
    with pytest.raises(GraphRefusal, match="can't cast to 'float8'"):
        CastFloat(dtype="float8")(Tower().graph())


def test_contradicting_shapes_are_refused() -> None:
    model = ir.from_onnx_text(SYMBOLIC)
    model.graph.inputs[1].shape = ir.Shape([9, 6])
    with pytest.raises(GraphRefusal, match="shape inference failed"):
        infer_shapes(model)


def test_the_cast_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    CastFloat(dtype="float16")(Tower().graph())
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
