"""The cut itself: what is written a second time behind it, and what may not be."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from decoders import SmallDecoder
from towers import run

from lmmprune.errors import GraphRefusal
from lmmprune.lazy import lazy
from lmmprune.passes.find.sites import llm_layer
from lmmprune.passes.graph.shapes import infer_shapes
from lmmprune.passes.methods import get_method
from lmmprune.passes.reduce.filters import last_query
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
from lmmprune.passes.reduce.rewire import rewire
from lmmprune.passes.reduce.rules import Reduce, ReductionRule
from lmmprune.passes.reduce.stage import Stage

HEAD = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[1,6,4] x, int64[1,6] position_ids, int64[2] rows) => (float[1,t,4] y)
   <float[2,2] w = {0.5, -1, 2, 0.25}, int64[1] last = {2}, float angle = {0.5}, int64[4] split = {0, 0, 2, 2},
    int64[3] join = {0, 0, 4}>
"""
# The boundary is "stream". Behind it, "waves" and "slope" are read; "early" and "cut" still see the longer sequence.
BEFORE = """{
   [cast] turn = Cast <to: int = 1> (position_ids)
   [cos] wave = Cos (turn)
   [spread] waves = Unsqueeze (wave, last)
   [tilt] slope = Sin (angle)
   [early] first = Mul (x, waves)
   [norm] stream = Tanh (first)
   [cut] shorter = Gather <axis: int = 1> (stream, rows)
   [cut_ids] positions = Gather <axis: int = 1> (position_ids, rows)
   [halves] a = Reshape (stream, split)
   [project] b = MatMul (a, w)
   [whole] c = Reshape (b, join)
   [turn_c] d = Mul (c, waves)
   [tilt_d] e = Mul (d, slope)
   [turn_e] f = Add (e, waves)
   [residual] y = Add (stream, f)
}"""
AFTER = """{
   [cast] turn = Cast <to: int = 1> (position_ids)
   [cos] wave = Cos (turn)
   [spread] waves = Unsqueeze (wave, last)
   [tilt] slope = Sin (angle)
   [early] first = Mul (x, waves)
   [norm] stream = Tanh (first)
   [cut] shorter = Gather <axis: int = 1> (stream, rows)
   [cut_ids] positions = Gather <axis: int = 1> (position_ids, rows)
   ["behind/cast"] "behind/turn" = Cast <to: int = 1> (positions)
   ["behind/cos"] "behind/wave" = Cos ("behind/turn")
   ["behind/spread"] "behind/waves" = Unsqueeze ("behind/wave", last)
   [halves] a = Reshape (shorter, split)
   [project] b = MatMul (a, w)
   [whole] c = Reshape (b, join)
   [turn_c] d = Mul (c, "behind/waves")
   [tilt_d] e = Mul (d, slope)
   [turn_e] f = Add (e, "behind/waves")
   [residual] y = Add (shorter, f)
}"""


def parsed(body: str) -> ir.Model:
    model = ir.from_onnx_text(HEAD + body)
    infer_shapes(model)
    return model


def printed(model: ir.Model) -> str:
    text = str(onnx.printer.to_text(ir.to_proto(model)))
    return text[text.index("{\n") :].strip()


def value(model: ir.Model, name: str) -> ir.Value:
    every = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    return next(v for v in every if v.name == name)


def cut(model: ir.Model) -> int:
    """Let everything behind ``stream`` but the cut itself read ``shorter`` and ``positions``."""
    stream, shorter = value(model, "stream"), value(model, "shorter")
    users = [(node, index) for node, index in stream.uses() if node.name != "cut"]
    last = value(model, "positions").producer()
    assert last is not None
    rebind = {value(model, "position_ids"): value(model, "positions"), stream: shorter}
    return rewire(model.graph, stream, shorter, users, rebind, after=last, prefix="behind")


def test_positions_are_written_again_behind_the_cut() -> None:
    model = parsed(BEFORE)
    assert printed(model) == BEFORE
    assert cut(model) == 3
    assert printed(model) == AFTER


def test_the_rest_of_the_graph_computes_on_the_shorter_sequence() -> None:
    model = parsed(BEFORE)
    cut(model)
    infer_shapes(model, stale=[output for node in model.graph for output in node.outputs])
    x = np.random.default_rng(0).standard_normal((1, 6, 4)).astype(np.float32)
    positions, rows = np.array([[3, 1, 4, 1, 5, 9]]), np.array([4, 1])
    found = run(model, {"x": x, "position_ids": positions, "rows": rows})["y"]
    waves = np.cos(positions)[..., None]
    stream = np.tanh(x * waves)[:, rows]
    mixed = (stream.reshape(1, 2, 2, 2) @ np.array([[0.5, -1], [2, 0.25]])).reshape(1, 2, 4)
    expected = stream + mixed * waves[:, rows] * np.sin(0.5) + waves[:, rows]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[tilt] slope = MatMul (first, w4)", r"'slope' \(MatMul\) carries tokens across the boundary 'stream'"),
        ("[tilt] slope = Tanh (first)", r"'slope' \(Tanh\) carries tokens across the boundary 'stream'"),
        ("[tilt] slope = Gather (weights, position_ids)", r"'slope' \(Gather\) carries tokens across the boundary"),
    ],
)
def test_only_index_arithmetic_may_cross(line: str, message: str) -> None:
    """A product, another stream, and a table of weights that is read by token."""
    text = BEFORE.replace("   [tilt] slope = Sin (angle)\n", "").replace("   [norm]", f"   {line}\n   [norm]")
    model = ir.from_onnx_text(HEAD.replace("join = {0, 0, 4}", "join = {0, 0, 4}, float[1,4,4] w4") + text)
    if "weights" in line:
        node = value(model, "slope").producer()
        assert node is not None
        table = ir.Value(name="weights", shape=ir.Shape([20, 4]), type=ir.TensorType(ir.DataType.FLOAT))
        table.const_value = lazy(unreadable, dtype=ir.DataType.FLOAT, shape=[20, 4], name="weights")
        model.graph.register_initializer(table)
        node.replace_input_with(0, table)
    with pytest.raises(GraphRefusal, match=message):
        cut(model)


def unreadable() -> np.ndarray:
    raise AssertionError("a weight was read")


@pytest.mark.parametrize(
    ("layers", "rule"),
    [(32, get_method("ficoco-l").rule()), (8, Reduce(filter=last_query))],
    ids=["merged in 28 of 32 layers, as in a 7B model", "dropped in 4 of 8"],
)
def test_every_cut_clones_the_same_few_nodes_of_index_arithmetic(layers: int, rule: ReductionRule) -> None:
    """So node growth is linear in the number of cuts."""
    decoder, tokens, most = SmallDecoder(layers=layers, heads=2, kv_heads=1, width=2), 64, layers - 4
    sizes = {}
    for cuts in (1, 2, 3, most):
        model = decoder.graph()
        before = {node.name for node in model.graph}
        # Not in the last layer: nothing behind it asks for a position.
        stages = [Stage(site=llm_layer(3 + i), keep=tokens - 1 - 2 * i, rule=rule) for i in range(cuts)]
        ReduceDecoder(method="test", stages=stages, image_tokens=tokens, prefix=1)(model)
        sizes[cuts] = len(list(model.graph))
    growth = sizes[3] - sizes[2]
    assert (sizes[2] - sizes[1], sizes[most] - sizes[2]) == (growth, (most - 2) * growth)
    clones = [n for n in model.graph if n.name not in before and not str(n.name).startswith("lmmprune/")]
    per_site = Counter(str(node.name).split("/")[0] for node in clones)
    assert len(per_site) == most
    assert len(set(per_site.values())) == 1
    assert {node.op_type for node in clones} <= {
        *("Shape", "Squeeze", "Unsqueeze", "Add", "Range", "LessOrEqual", "Cast", "Mul", "Cos", "Sin", "Expand"),
        *("Reshape", "Concat"),
    }
    weights = set(decoder.weights()) - {"inv_freq"}
    assert not [v for node in clones for v in node.inputs if v is not None and v.name in weights]


def test_names_of_clones_dont_grow_from_cut_to_cut() -> None:
    """Profilers and error messages print them."""
    model = SmallDecoder(layers=6).graph()
    stages = [Stage(site=llm_layer(i), keep=9 - i, rule=Reduce(filter=last_query)) for i in range(5)]
    ReduceDecoder(method="test", stages=stages, image_tokens=10, prefix=1)(model)
    names = [str(node.name) for node in model.graph]
    assert max(name.count("llm_layer_") for name in names) == 1
