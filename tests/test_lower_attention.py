"""Attention as primitives: golden graphs, numerics against the formula in NumPy, refusals."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from lowering import lowered, shown
from towers import run

from lmmprune.errors import GraphRefusal
from lmmprune.passes.lower.equal_head_widths import EqualHeadWidths
from lmmprune.passes.lower.lower_attention import LowerAttention

B, H, S, T, D = 2, 4, 3, 5, 6


def graph(inputs: str, node: str, outputs: str = "float[2,4,3,6] y", body: str = "") -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["" : 23]> g ({inputs}) => ({outputs}) {{ {node} {body} }}'
    return ir.from_onnx_text(text)


def qkv(kind: str = "float", heads: int = H, key_heads: int = H) -> str:
    keys = f"[2,{key_heads},5,6]"
    return f"{kind}[2,{heads},3,6] q, {kind}{keys} k, {kind}{keys} v"


def draw(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def formula(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float, bias: np.ndarray | float = 0) -> np.ndarray:
    """softmax(scale q k' + bias) v in float64, ``[B,H,S,D]``; heads of k and v are repeated."""
    q, k, v = (array.astype(np.float64) for array in (q, k, v))
    k, v = (np.repeat(array, q.shape[1] // array.shape[1], axis=1) for array in (k, v))
    logits = scale * q @ k.swapaxes(-1, -2) + bias
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


FEEDS = {"q": (B, H, S, D), "k": (B, H, T, D), "v": (B, H, T, D)}


def test_the_scale_stands_before_the_first_product() -> None:
    model = lowered(graph(qkv(), "y = Attention<scale = 0.25>(q, k, v)"), LowerAttention())
    assert shown(model) == [
        "Mul_2 = Mul(q, 0.25)",
        "Transpose_3 = Transpose(k)",
        "MatMul_4 = MatMul(Mul_2, Transpose_3)",
        "Softmax_5 = Softmax(MatMul_4)",
        "y = MatMul(Softmax_5, v)",
    ]
    feeds = draw(**FEEDS)
    np.testing.assert_allclose(run(model, feeds)["y"], formula(**feeds, scale=0.25), atol=2e-6)


def test_half_precision_has_its_softmax_in_float32() -> None:
    mask = "float16[3,5] mask"
    model = lowered(
        graph(f"{qkv('float16')}, {mask}", "y = Attention(q, k, v, mask)", "float16[2,4,3,6] y"), LowerAttention()
    )
    assert shown(model) == [
        f"Mul_2 = Mul(q, {float(np.float16(D**-0.5))})",
        "Transpose_3 = Transpose(k)",
        "MatMul_4 = MatMul(Mul_2, Transpose_3)",
        "Cast_5 = Cast(MatMul_4)",
        "Cast_6 = Cast(mask)",
        "Add_7 = Add(Cast_5, Cast_6)",
        "Softmax_8 = Softmax(Add_7)",
        "Cast_9 = Cast(Softmax_8)",
        "y = MatMul(Cast_9, v)",
    ]
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    assert softmax.outputs[0].dtype == ir.DataType.FLOAT
    feeds = {name: array.astype(np.float16) for name, array in draw(**FEEDS, mask=(S, T)).items()}
    expected = formula(feeds["q"], feeds["k"], feeds["v"], scale=D**-0.5, bias=feeds["mask"].astype(np.float64))
    np.testing.assert_allclose(run(model, feeds)["y"], expected, atol=4e-3)


def test_bfloat16_gets_constants_of_its_own() -> None:
    model = lowered(graph(qkv("bfloat16"), "y = Attention(q, k, v)", "bfloat16[2,4,3,6] y"), LowerAttention())
    (scale,) = [v.const_value for v in model.graph.initializers.values() if v.dtype == ir.DataType.BFLOAT16]
    assert scale is not None
    assert scale.numpy() == np.asarray(D**-0.5, ml_dtypes.bfloat16)


def test_a_boolean_mask_becomes_addends_once_for_all_layers() -> None:
    twice = "x = Attention(q, k, v, mask) y = Attention(x, k, v, mask)"
    model = lowered(graph(f"{qkv()}, bool[1,1,3,5] mask", twice), LowerAttention())
    assert [line for line in shown(model) if " = Where" in line] == ["Where_7 = Where(mask, 0.0, -65504.0)"]
    seen = np.random.default_rng(0).random((1, 1, S, T)) < 0.5
    seen[..., 0] = True
    feeds = draw(**FEEDS)
    bias = np.where(seen, 0, -np.inf)
    first = formula(**feeds, scale=D**-0.5, bias=bias)
    expected = formula(first, feeds["k"], feeds["v"], scale=D**-0.5, bias=bias)
    np.testing.assert_allclose(run(model, feeds | {"mask": seen})["y"], expected, atol=2e-6)


def test_fewer_key_heads_are_repeated() -> None:
    model = lowered(graph(qkv(key_heads=2), "y = Attention(q, k, v)"), LowerAttention())
    assert sum(" = Expand" in line for line in shown(model)) == 2
    feeds = draw(q=(B, H, S, D), k=(B, 2, T, D), v=(B, 2, T, D))
    np.testing.assert_allclose(run(model, feeds)["y"], formula(**feeds, scale=D**-0.5), atol=2e-6)


def test_flat_inputs_are_split_into_heads_and_joined_again() -> None:
    node = "y = Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, v)"
    model = lowered(
        graph("float[2,3,24] q, float[2,5,12] k, float[2,5,12] v", node, "float[2,3,24] y"), LowerAttention()
    )
    feeds = draw(q=(B, S, H * D), k=(B, T, 2 * D), v=(B, T, 2 * D))
    split = [feeds[name].reshape(B, -1, heads, D).swapaxes(1, 2) for name, heads in (("q", H), ("k", 2), ("v", 2))]
    expected = formula(*split, scale=D**-0.5).swapaxes(1, 2).reshape(B, S, H * D)
    np.testing.assert_allclose(run(model, feeds)["y"], expected, atol=2e-6)


@pytest.mark.parametrize(("past", "given"), [(0, False), (2, True)])
def test_the_causal_flag_counts_the_cache(past: int, given: bool) -> None:
    inputs, outputs = qkv(), "float[2,4,3,6] y"
    node = "y = Attention<is_causal = 1>(q, k, v)"
    if given:
        inputs += ", float[2,4,2,6] pk, float[2,4,2,6] pv"
        node = "y, nk, nv = Attention<is_causal = 1>(q, k, v, , pk, pv)"
        outputs += ", float[2,4,7,6] nk, float[2,4,7,6] nv"
    model = lowered(graph(inputs, node, outputs), LowerAttention())
    feeds = draw(**FEEDS)
    cache = draw(pk=(B, H, past, D), pv=(B, H, past, D))
    k, v = (np.concatenate([cache[f"p{n}"], feeds[n]], axis=2) for n in "kv")
    seen = np.arange(T + past)[None] <= np.arange(S)[:, None] + past
    found = run(model, feeds | (cache if given else {}))
    expected = formula(feeds["q"], k, v, scale=D**-0.5, bias=np.where(seen, 0, -np.inf))
    np.testing.assert_allclose(found["y"], expected, atol=2e-6)
    if given:
        np.testing.assert_array_equal(found["nk"], k)
        np.testing.assert_array_equal(found["nv"], v)


def test_the_causal_triangle_follows_dynamic_lengths() -> None:
    text = "float[1,2,s,6] q, float[1,2,t,6] k, float[1,2,t,6] v"
    model = lowered(
        graph(text, "y = Attention<is_causal = 1, scale = 1.0>(q, k, v)", "float[1,2,s,6] y"), LowerAttention()
    )
    assert not any("Mul(" in line and "MatMul" not in line for line in shown(model)), "a scale of 1 costs nothing"
    for length in (1, 4):
        feeds = draw(q=(1, 2, length, D), k=(1, 2, length, D), v=(1, 2, length, D))
        bias = np.where(np.tri(length) == 1, 0, -np.inf)
        np.testing.assert_allclose(run(model, feeds)["y"], formula(**feeds, scale=1.0, bias=bias), atol=2e-6)


FLAT = "float[2,3,24] q, float[2,5,24] k, float[2,5,24] v"


@pytest.mark.parametrize(
    ("inputs", "node", "reason"),
    [
        (qkv(), "y = Attention<softcap = 30.0>(q, k, v)", "has a softcap"),
        (qkv(), "y, a, b, logits = Attention(q, k, v) z = Neg(logits)", "gives its logits to others"),
        (qkv(heads=4, key_heads=3), "y = Attention(q, k, v)", "4 heads on 3 key heads"),
        (FLAT, "y = Attention(q, k, v)", "doesn't say q_num_heads"),
        ("float[2,4,3,d] q, float[2,4,5,d] k, float[2,4,5,d] v", "y = Attention(q, k, v)", "a number on axis -1"),
        ("float[3,6] q, float[5,6] k, float[5,6] v", "y = Attention(q, k, v)", "expected rank 3 or 4"),
    ],
)
def test_refusals(inputs: str, node: str, reason: str) -> None:
    with pytest.raises(GraphRefusal, match=reason):
        LowerAttention()(graph(inputs, node))


def test_lengths_of_keys_are_refused() -> None:
    model = graph(f"{qkv()}, int64[2] lengths", "y = Attention(q, k, v, , , , lengths)")
    with pytest.raises(GraphRefusal, match="nonpad_kv_seqlen"):
        LowerAttention()(model)


@pytest.mark.parametrize("scale", ["", "<scale = 0.3>"], ids=["own", "given"])
def test_queries_and_keys_are_widened_to_the_values(scale: str) -> None:
    inputs = "float[2,4,3,6] q, float[2,4,5,6] k, float[2,4,5,16] v"
    model = lowered(graph(inputs, f"y = Attention{scale}(q, k, v)", "float[2,4,3,16] y"), EqualHeadWidths())
    (node,) = [node for node in model.graph if node.op_type == "Attention"]
    assert [list(value.shape or ()) for value in node.inputs if value is not None] == [
        [2, 4, 3, 16],
        [2, 4, 5, 16],
        [2, 4, 5, 16],
    ]
    feeds = draw(q=FEEDS["q"], k=FEEDS["k"], v=(B, H, T, 16))
    wanted = formula(**feeds, scale=0.3 if scale else D**-0.5)
    np.testing.assert_allclose(run(model, feeds)["y"], wanted, atol=2e-6)


def test_equal_widths_stay_as_they_are() -> None:
    model = graph(qkv(), "y = Attention(q, k, v)")
    assert not EqualHeadWidths()(model).modified
    assert [node.op_type for node in model.graph] == ["Attention"]
