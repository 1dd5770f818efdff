"""Graphs of several rows against the graph of one, run row by row: each form of each operator's rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from lmmprune.names import PADDING
from lmmprune.passes.batch.mask_padding import MaskPadding
from lmmprune.passes.batch.widen_batch import WidenBatch
from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.graph.shapes import infer_shapes

ROWS = 3
# Each graph takes x [1,4,6] and i [1,2] int64 below 4, and makes y [1, ...].
GRAPHS = {
    "rows stay in their axis": """
      a = Mul (x, x)
      s = Softmax <axis = 2> (a)
      m = ReduceMean <keepdims = 1> (s, axis1)
      y = Sub (x, m)
    """,
    "their axis goes, and comes again": """
      flat = Squeeze (x, axis0)
      turned = Transpose <perm = [1, 0]> (flat)
      best, where = TopK <axis = 0> (turned, two)
      sum = ReduceSum <keepdims = 0> (best, axis1)
      y = Unsqueeze (sum, axis0)
    """,
    "places of its own in a table of its own": """
      taken = Gather <axis = 1> (x, i)
      y = Squeeze (taken, axis1)
    """,
    "places of its own, as a list": """
      list = Squeeze (i, axis0)
      y = Gather <axis = 1> (x, list)
    """,
    "places of its own in an inner axis": """
      list = Squeeze (i, axis0)
      y = Gather <axis = 2> (x, list)
    """,
    "places of its own in one table": """
      list = Squeeze (i, axis0)
      inner = Gather <axis = 1> (table, list)
      outer = Gather <axis = 0> (table, list)
      both = MatMul (outer, inner)
      y = Unsqueeze (both, axis0)
    """,
    "what is the same is repeated": """
      more = Concat <axis = 1> (x, same)
      flat = Reshape (more, minus)
      tail = Concat <axis = 0> (flat, same1)
      run = CumSum (tail, zero)
      y = Unsqueeze (run, axis0)
    """,
    "lengths are those of one row": """
      all = Shape (x)
      some = Shape <start = 1, end = 2> (x)
      first = Slice (all, axis0, axis1, axis0)
      n = Concat <axis = 0> (first, some, six)
      again = Reshape (x, n)
      wide = Expand (again, n)
      both = Slice (wide, axis0, two, axis2)
      y = Identity (both)
    """,
    "a product with rows on either side": """
      flat = Squeeze (x, axis0)
      turned = Transpose <perm = [1, 0]> (flat)
      left = MatMul (flat, both2w6)
      right = MatMul (table6, turned)
      square = MatMul (flat, turned)
      one = MatMul (left, turned)
      sum = Add (one, square)
      sum2 = Add (sum, right)
      y = Unsqueeze (sum2, axis0)
    """,
    "halves, and the larger": """
      flat = Squeeze (x, axis0)
      a, b = Split <axis = 1, num_outputs = 2> (flat)
      more = Greater (a, b)
      c = Where (more, a, b)
      arg = ArgMax <axis = 0, keepdims = 1> (c)
      f = Cast <to = 1> (arg)
      d = Add (c, f)
      y = Unsqueeze (d, axis0)
    """,
}
HEAD = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[1,4,6] x, int64[1,2] i) => (float[OUT] y)
<int64[1] axis0 = {0}, int64[1] axis1 = {1}, int64[1] axis2 = {2}, int64[1] two = {2}, int64[1] six = {6},
 int64[1] minus = {-1}, int64 zero = {0}, float[3] same1 = {1,2,3}, float[1,2,6] same = {1,2,3,4,5,6,6,5,4,3,2,1},
 float[4,4] table = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16},
 float[6,6] both2w6 = {1,0,2,1,3,1,0,1,1,0,2,1,3,1,0,1,1,0,2,1,3,1,0,1,1,0,2,1,3,1,0,1,5,5,5,5},
 float[4,6] table6 = {1,0,2,1,3,1,0,1,1,0,2,1,3,1,0,1,1,0,2,1,3,1,0,1}>
{
BODY
}
"""


def parsed(body: str) -> ir.Model:
    text = HEAD.replace("BODY", body).replace("float[OUT]", "float[1, n]")
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    found = ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))
    infer_shapes(found)
    return found


def run(model: ir.Model, feeds: dict[str, Any]) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: list[np.ndarray] = ort.InferenceSession(proto.SerializeToString(), options).run(None, feeds)
    return found


@pytest.mark.parametrize("name", GRAPHS)
def test_rows_know_nothing_of_each_other(name: str) -> None:
    rng = np.random.default_rng(0)
    x, i = rng.standard_normal((ROWS, 4, 6)).astype(np.float32), rng.integers(0, 4, (ROWS, 2))
    one = parsed(GRAPHS[name])
    wanted = [run(one, {"x": x[row : row + 1], "i": i[row : row + 1]})[0] for row in range(ROWS)]
    assert not np.array_equal(wanted[0], wanted[1])
    model = parsed(GRAPHS[name])
    assert WidenBatch(batch=ROWS)(model).modified
    [found] = run(model, {"x": x, "i": i})
    assert found.shape == (ROWS, *wanted[0].shape[1:])
    np.testing.assert_allclose(found, np.concatenate(wanted), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("y = Hardmax (x)", r"\(Hardmax\) can't be computed for several rows"),
        ("n = Squeeze (i, axis0)\n y = Expand (x, n)", "a shape that differs from row to row"),
        (
            "a = Slice (i, axis0, axis1, axis1)\n b = Squeeze (a, axis0)\n y = Slice (x, b, two, axis1)",
            "differs from row",
        ),
    ],
)
def test_what_has_no_rule_is_refused(body: str, line: str) -> None:
    text = HEAD.replace("BODY", body).replace("float[OUT] y", "float[1,a,b] y")
    model = ir.from_proto(onnx.parser.parse_model(text))
    for node in model.graph:
        for value in node.outputs:
            value.shape = value.shape or ir.Shape([1, 2])
    with pytest.raises(Refused, match=line):
        WidenBatch(batch=2)(model)


def test_a_batch_of_one_is_none() -> None:
    with pytest.raises(Refused, match="expected 2 or more"):
        WidenBatch(batch=1)(parsed(GRAPHS["halves, and the larger"]))


WINDOWS = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[1,8,4] x) => (float[1,8,4] y)
<int64[4] apart = {4,1,2,4}, int64[3] whole = {1,8,4}>
{
  windows = Reshape (x, apart)
  once = Attention (windows, windows, windows)
  twice = Attention (once, windows, once)
  y = Reshape (twice, whole)
}
"""


def test_attention_within_windows_has_more_images_than_rows() -> None:
    """Two in a row, each with the four windows of every row side by side."""
    x = np.random.default_rng(2).standard_normal((ROWS, 8, 4)).astype(np.float32)
    one, model = (ir.from_proto(onnx.parser.parse_model(WINDOWS)) for _ in range(2))
    for graph in (one, model):
        infer_shapes(graph)
    wanted = np.concatenate([run(one, {"x": x[row : row + 1]})[0] for row in range(ROWS)])
    WidenBatch(batch=ROWS)(model)
    [found] = run(model, {"x": x})
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    shapes = [tuple(node.inputs[0].shape) for node in model.graph if node.op_type == "Attention"]
    assert shapes == [(4 * ROWS, 1, 2, 4)] * 2


ATTENTION = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[1,1,t,2] x, KIND[1,1,t,t] mask) => (float[1,1,t,2] y)
{
  seen = Identity (mask)
  y = Attention (x, x, x, seen)
}
"""


def attention(kind: str = "bool") -> ir.Model:
    model = ir.from_proto(onnx.parser.parse_model(ATTENTION.replace("KIND", kind)))
    for node in model.graph:
        node.outputs[0].shape = model.graph.inputs[1].shape
        node.outputs[0].type = model.graph.inputs[1].type
        break
    return model


def test_padding_is_seen_by_nobody() -> None:
    model = attention()
    MaskPadding(begin=2, removed=[1])(model)
    length, padding, begin = 6, 2, 1
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 1, length, 2)).astype(np.float32)
    causal = np.tril(np.ones((length, length), bool))
    [found] = run(model, {"x": x, "mask": causal[None, None], PADDING: np.array([padding])})
    real = [*range(begin), *range(begin + padding, length)]
    scores = x[0, 0] @ x[0, 0].T / np.sqrt(2)
    for row in real:
        seen = [column for column in real if column <= row]
        weights = np.exp(scores[row, seen])
        np.testing.assert_allclose(found[0, 0, row], weights @ x[0, 0, seen] / weights.sum(), rtol=1e-5)
    assert np.isfinite(found).all(), "padding gives numbers, too"
    [plain] = run(attention(), {"x": x, "mask": causal[None, None]})
    [none] = run(model, {"x": x, "mask": causal[None, None], PADDING: np.array([0])})
    assert np.array_equal(plain, none)


@pytest.mark.parametrize(
    ("kind", "options", "line"),
    [
        ("float", {"begin": 2, "removed": [0]}, "no mask of booleans"),
        ("bool", {"begin": 2, "removed": [0, 0]}, "expected 2, one per layer"),
        ("bool", {"begin": 2, "removed": [2]}, "padding at place 0: expected a token before it"),
    ],
)
def test_masks_that_cannot_hide_padding_are_refused(kind: str, options: dict[str, Any], line: str) -> None:
    with pytest.raises(Refused, match=line):
        MaskPadding(**options)(attention(kind))
    model = attention()
    MaskPadding(begin=1, removed=[0])(model)
    with pytest.raises(Refused, match="has an input 'padding' already"):
        MaskPadding(begin=1, removed=[0])(model)
