"""Freezing, casting, counting: small passes on small graphs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from decoders import IMAGE, VOCAB, SmallDecoder, feeds
from towers import Tower, run

from lmmprune.errors import GraphRefusal
from lmmprune.lazy import lazy
from lmmprune.passes.find.sites import llm_input, llm_layer
from lmmprune.passes.graph.count_flops import count_flops
from lmmprune.passes.graph.shapes import bind_dims, infer_shapes
from lmmprune.passes.graph.specialize import specialize
from lmmprune.passes.lower.cast_float import CastFloat
from lmmprune.passes.lower.freeze_shapes import FreezeShapes, all_values
from lmmprune.passes.methods import METHODS, get_method
from lmmprune.passes.reduce.reduce_decoder import ReduceDecoder
from lmmprune.passes.reduce.reduce_vision import ReduceVision
from lmmprune.passes.reduce.rules import Reduce
from lmmprune.passes.reduce.stage import Stage

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
    stages = get_method("freepruner").stages(tower.facts, 7)
    ReduceVision(method="freepruner", stages=stages, grid=tower.grid)(model)
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


def cut(model: ir.Model, decoder: SmallDecoder, name: str, tokens: int, average: int) -> int:
    """Apply a method's stages in the decoder; return how many visual tokens enter it."""
    stages = get_method(name).plan(decoder.facts(tokens), average)
    entering = min((stage.keep for stage in stages if not stage.site.in_decoder), default=tokens)
    ReduceDecoder(method=name, stages=stages, image_tokens=entering, prefix=2)(model)
    return entering


@pytest.mark.parametrize("name", [name for name in METHODS if "llm" in METHODS[name].sites])
def test_the_cast_keeps_scores_in_the_decoder_in_float32(name: str) -> None:
    decoder = SmallDecoder(layers=4, heads=4, kv_heads=2, width=8)
    model = decoder.graph()
    entering = cut(model, decoder, name, 12, 7)
    ids = [5, 6, *[IMAGE] * entering, 7, 8, 9]
    inputs = feeds(decoder, ids, np.arange(len(ids)), decoder.features(entering), decoder.no_cache())
    inputs = {key: array if array.dtype == np.int64 else array.astype(np.float16) for key, array in inputs.items()}
    exact = run(model, {k: a if a.dtype == np.int64 else a.astype(np.float32) for k, a in inputs.items()})
    CastFloat(dtype="float16")(model)
    scores = ("Softmax", "TopK", "ReduceMean", "ReduceSum", "ReduceL2")
    for node in model.graph:
        if str(node.name).startswith("lmmprune/") and node.op_type in scores:
            assert node.outputs[0].dtype == ir.DataType.FLOAT, node.name
    found = run(model, inputs)
    for output, array in exact.items():
        if array.dtype == np.int64:
            assert found[output].tolist() == array.tolist(), output
        else:
            assert found[output].dtype == np.float16
            # Half precision has eleven bits.
            np.testing.assert_allclose(found[output], array, atol=2e-2)


def unreadable() -> np.ndarray:
    raise AssertionError("a weight was read")


def unread(model: ir.Model) -> ir.Model:
    """Replace the weights by ones that can't be read."""
    for name, value in list(model.graph.initializers.items()):
        if value.dtype == ir.DataType.FLOAT and value.const_value is not None and value.const_value.size > 4:
            value.const_value = lazy(
                unreadable, dtype=ir.DataType.FLOAT, shape=list(value.const_value.shape.numpy()), name=name
            )
    return model


@pytest.mark.parametrize(("seq", "past"), [(2 + 12 + 9, 0), (1, 40), (3, 17)])
@pytest.mark.parametrize("name", ["ficoco-l", "sparsevlm", None])
def test_a_specialized_decoder_is_static_and_no_weight_is_read(name: str | None, seq: int, past: int) -> None:
    decoder, tokens = SmallDecoder(layers=4), 12
    model = decoder.graph()
    if name:
        cut(model, decoder, name, tokens, 7)
    unread(bound(model, tokens))
    before = [(value.name, str(value.shape), value.const_value) for value in all_values(model)]
    for value in all_values(specialize(model, seq=seq, past=past)):
        assert value.shape is not None, value.name
        assert all(isinstance(dim, int) for dim in value.shape), value.name
    assert [(value.name, str(value.shape), value.const_value) for value in all_values(model)] == before


def bound(model: ir.Model, tokens: int) -> ir.Model:
    bind_dims(model, {"image_tokens": tokens})
    return model


def test_binding_a_dimension_leaves_the_others() -> None:
    model = bound(SmallDecoder().graph(), 9)
    shapes = {value.name: list(value.shape or []) for value in model.graph.inputs}
    assert shapes["image_features"] == [1, 9, 8]
    assert [str(dim) for dim in shapes["past_key_values.0.key"]] == ["1", "1", "past", "4"]
    assert "image_tokens" not in {str(dim) for value in all_values(model) for dim in value.shape or []}


def test_flops_of_a_cut_decoder_are_those_of_a_hand_count() -> None:
    """Four layers, three visual tokens fewer from layer 1's MLP on, five more from layer 3 on."""
    decoder = SmallDecoder(layers=4, heads=4, kv_heads=2, width=4)
    tokens, length, c, narrow = 12, 2 + 12 + 6, 16, 8
    rule = Reduce(filter=lambda at: at.b.constant(np.arange(at.tokens, dtype=np.float32)[None]))
    stages = [Stage(site=llm_layer(1), keep=9, rule=rule), Stage(site=llm_input(3), keep=4, rule=rule)]
    model = bound(decoder.graph(), tokens)
    plain = count_flops(specialize(model, seq=length))
    ReduceDecoder(method="test", stages=stages, image_tokens=tokens, prefix=2)(model)

    def attention(n: int) -> int:
        return 2 * n * c * (2 * c + 2 * narrow) + 2 * 2 * n * n * c  # q and o, k and v; q.k and a.v of all heads

    def mlp(n: int) -> int:
        return 2 * n * c * c

    head = 2 * c * VOCAB
    assert plain == 4 * (attention(20) + mlp(20)) + head
    found = count_flops(specialize(model, seq=length))
    # The rules here cost nothing: they look at no attention.
    expected = attention(20) + mlp(20) + attention(20) + mlp(17) + attention(17) + mlp(17) + attention(12) + mlp(12)
    assert found == expected + head
    assert count_flops(specialize(model, seq=1, past=0)) == 4 * (attention(1) + mlp(1)) + head


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
