"""The passes that bring another exporter's graph into canonical form, on small graphs written as text."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from text_graphs import B, C, D, H, T, checked, operators, parsed, random
from towers import run

from lmmprune.errors import GraphRefusal
from lmmprune.lazy import lazy
from lmmprune.passes.foreign.fold_shapes import FoldShapes
from lmmprune.passes.foreign.fuse_attention import FuseAttention
from lmmprune.passes.foreign.widen_float import WidenFloat
from lmmprune.passes.lower.convert_opset import ConvertOpset


def test_axes_of_a_reduction_become_an_input() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2,4] x) => (float[2,1] y) { y = ReduceMean<axes=[-1]>(x) }'
    )
    model = parsed(text)
    assert ConvertOpset(version=23)(model).modified
    checked(model)
    (node,) = model.graph
    assert node.inputs[1] is not None
    assert node.inputs[1].const_value is not None
    assert (dict(node.attributes), node.inputs[1].const_value.numpy().tolist()) == ({}, [-1])
    x = random(2, 4)
    np.testing.assert_allclose(run(model, {"x": x})["y"], x.mean(-1, keepdims=True), rtol=1e-6)
    assert not ConvertOpset(version=23)(model).modified
    with pytest.raises(GraphRefusal, match="ReduceMean"):
        ConvertOpset(version=17)(model)


def test_a_split_without_sizes_says_into_how_many() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2,4] x) => (float[1,4] y, float[1,4] z) { y, z = Split(x) }'
    )
    model = parsed(text)
    assert ConvertOpset(version=23)(model).modified
    checked(model)
    x = random(2, 4)
    found = run(model, {"x": x})
    np.testing.assert_array_equal([found["y"], found["z"]], [x[:1], x[1:]])


def test_an_attribute_that_no_opset_knows_is_refused() -> None:
    model = parsed('<ir_version: 8, opset_import: ["" : 17]> g (float[2,4] x) => (float[2,4] y) { y = Relu(x) }')
    next(iter(model.graph)).attributes["axis"] = ir.AttrInt64("axis", 1)
    model.graph.opset_imports[""] = 12
    with pytest.raises(GraphRefusal, match="has an attribute 'axis', which opset 12 doesn't know"):
        ConvertOpset(version=23)(model)


# --- shapes ----------------------------------------------------------------------------------------------------------

# What TorchScript writes for x.view(len(x), -1, 2) and for a CLS token expanded to the batch.
DYNAMIC = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[batch,h,w] x) => (float[b,n,2] y) <int64 zero = {0}, int64[1] axis = {0}, int64[1] rest = {-1},
    int64[1] two = {2}, float[1,1,2] cls = {7, 8}, int64[3] wanted = {-1, 1, 2}, int64[1] one_end = {1},
    int64 minus = {-1}> {
    shape = Shape(x)
    length = Gather(shape, zero)
    lead = Unsqueeze(length, axis)
    target = Concat<axis=0>(lead, rest, two)
    rows = Reshape(x, target)
    rank = Shape(wanted)
    filled = ConstantOfShape<value = int64[1] {1}>(rank)
    negative = Mul(filled, minus)
    open = Equal(wanted, negative)
    last = Slice(target, axis, one_end)
    sized = Where(open, filled, wanted)
    expanded = Expand(cls, sized)
    tail = Concat<axis=0>(lead, one_end, two)
    tokens = Expand(expanded, tail)
    y = Concat<axis=1>(tokens, rows)
}
"""


def test_shape_arithmetic_is_folded_to_numbers() -> None:
    model = parsed(DYNAMIC)
    fold = FoldShapes(shapes={"x": (3, 4, 6)})
    assert fold(model).modified
    checked(model)
    assert operators(model) == {"Reshape": 1, "Concat": 1}
    assert [list(value.shape or ()) for value in model.graph.outputs] == [[3, 13, 2]]
    x = random(3, 4, 6)
    expected = np.concatenate([np.tile(np.array([7, 8], np.float32), (3, 1, 1)), x.reshape(3, 12, 2)], axis=1)
    np.testing.assert_array_equal(run(model, {"x": x})["y"], expected)
    assert not fold(model).modified


def test_folding_reads_no_weight() -> None:
    weights = ", ".join("1" * 512)
    model = parsed(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n,4] x) => (float[m,128] y)'
        f" <float[128,4] w = {{{weights}}}>"
        " { wt = Transpose(w) y = MatMul(x, wt) }"
    )

    def unreadable() -> Any:
        raise AssertionError("a weight was read")

    weight = model.graph.initializers["w"]
    weight.const_value = lazy(unreadable, dtype=ir.DataType.FLOAT, shape=(128, 4), name="w")
    FoldShapes(shapes={"x": (2, 4)})(model)
    assert operators(model) == {"Transpose": 1, "MatMul": 1}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({}, "no shape was given for the input 'x'"),
        ({"x": (3, 4)}, r"input 'x' has shape .*: it can't be \[3, 4\]"),
    ],
)
def test_shapes_that_dont_fit_are_refused(shapes: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphRefusal, match=message):
        FoldShapes(shapes=shapes)(parsed(DYNAMIC))


def test_a_size_that_depends_on_data_is_refused() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[n,4] x) => (int64[2,found] y) { y = NonZero(x) }'
    with pytest.raises(GraphRefusal, match="its size depends on data"):
        FoldShapes(shapes={"x": (2, 4)})(parsed(text))


# --- precision -------------------------------------------------------------------------------------------------------

# The numbers are the bits of 0.5, 1.5, 2.5, 3.5 and of 3.
HALF = """
<ir_version: 8, opset_import: ["" : 17]>
g (float16[2,4] x) => (float16[2,4] y) <float16[4] w = {14336, 15872, 16640, 17152}> {
    scale = Constant<value = float16 {16896}>()
    product = Mul(x, w)
    scaled = Mul(product, scale)
    wide = Cast<to = 1>(scaled)
    chances = Softmax<axis = -1>(wide)
    y = Cast<to = 10>(chances)
}
"""


def test_half_precision_is_widened() -> None:
    model = parsed(HALF)
    assert WidenFloat()(model).modified
    checked(model)
    assert {value.dtype for node in model.graph for value in node.outputs} == {ir.DataType.FLOAT}
    x = random(2, 4)
    logits = x.astype(np.float64) * [0.5, 1.5, 2.5, 3.5] * 3
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(run(model, {"x": x})["y"], expected, rtol=1e-5)
    assert not WidenFloat()(model).modified


def test_a_node_that_names_half_precision_elsewhere_is_refused() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[4,4] x) => (float16[4,4] y) { y = EyeLike<dtype = 10>(x) }'
    )
    with pytest.raises(GraphRefusal, match=r"\(EyeLike\) makes half-precision values: export in float32"):
        WidenFloat()(parsed(text))


# --- layer normalization ---------------------------------------------------------------------------------------------


HEADS = "{0}s = Reshape({0}, split) {0}h = Transpose<perm = [0,2,1,3]>({0}s)"
JOIN = "turned = Transpose<perm = [0,2,1,3]>(mixed) y = Reshape(turned, join)"
SPLIT = " ".join(HEADS.format(name) for name in "qkv")
FORMS = {
    "scale on the logits": f"""{SPLIT} kt = Transpose<perm = [0,1,3,2]>(kh)
        dots = MatMul(qh, kt) logits = Mul(dots, half) p = Softmax<axis = -1>(logits) mixed = MatMul(p, vh) {JOIN}""",
    "divided": f"""{SPLIT} kt = Transpose<perm = [0,1,3,2]>(kh)
        dots = MatMul(qh, kt) logits = Div(dots, two) p = Softmax<axis = 3>(logits) mixed = MatMul(p, vh) {JOIN}""",
    "half of the scale on each side": f"""{SPLIT} kt = Transpose<perm = [0,2,3,1]>(ks)
        a = Mul(qh, root) b = Mul(kt, root) logits = MatMul(a, b) p = Softmax(logits) mixed = MatMul(p, vh) {JOIN}""",
    "scale on q before the heads": """a = Mul(half, q) qs = Reshape(a, split) qh = Transpose<perm = [0,2,1,3]>(qs)
        ks = Reshape(k, split) kt = Transpose<perm = [0,2,3,1]>(ks) vs = Reshape(v, split)
        vh = Transpose<perm = [0,2,1,3]>(vs) logits = MatMul(qh, kt) p = Softmax(logits) mixed = MatMul(p, vh) """
    + JOIN,
    "bmm": f"""{SPLIT} q3 = Reshape(qh, flat) k3 = Reshape(kh, flat) v3 = Reshape(vh, flat)
        kt = Transpose<perm = [0,2,1]>(k3) dots = MatMul(q3, kt) scaled = Mul(dots, half) logits = Identity(scaled)
        p = Softmax<axis = -1>(logits) m3 = MatMul(p, v3) mixed = Reshape(m3, unflat) {JOIN}""",
    "softmax on four axes of a bmm": f"""{SPLIT} q3 = Reshape(qh, flat) k3 = Reshape(kh, flat) v3 = Reshape(vh, flat)
        kt = Transpose<perm = [0,2,1]>(k3) dots = MatMul(q3, kt) square = Reshape(dots, square4)
        logits = Mul(square, half) p4 = Softmax<axis = -1>(logits) p = Reshape(p4, square3) m3 = MatMul(p, v3)
        mixed = Reshape(m3, unflat) {JOIN}""",
}
PLAIN = FORMS["scale on the logits"]
# Each head's entries stand in every third place of k, and heads in the places of its entries.
INTERLEAVED = PLAIN.replace("ks = Reshape(k, split)", "kw = Reshape(k, wrong) ks = Transpose<perm = [0,1,3,2]>(kw)")


def attention(body: str, *, opset: int = 23) -> ir.Model:
    return parsed(
        f'<ir_version: 10, opset_import: ["" : {opset}]>'
        f" g (float[{B},{T},{C}] q, float[{B},{T},{C}] k, float[{B},{T},{C}] v) => (float[{B},{T},{C}] y)"
        f" <int64[4] split = {{0, 0, {H}, {D}}}, int64[3] join = {{{B}, {T}, -1}}, int64[3] flat = {{-1, {T}, {D}}},"
        f" int64[4] unflat = {{{B}, {H}, {T}, {D}}}, int64[4] square4 = {{{B}, {H}, {T}, {T}}},"
        f" int64[3] square3 = {{-1, {T}, {T}}}, int64[4] wrong = {{0, 0, {D}, {H}}}, float half = {{0.5}},"
        f" float two = {{2}}, float root = {{0.70710678}}, float[{T}] mask = {{0, 0, 0, 0, -9}},"
        f" int64[1] first = {{0}}, int64[1] second = {{1}}, int64[1] axis = {{2}},"
        f" int64[{T}] order = {{4, 0, 1, 2, 3}}> {{ {body} }}"
    )


def mixed(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Write attention with a scale of one half, token by token."""
    found = np.zeros(q.shape)
    for b in range(B):
        for h in range(H):
            rows = slice(h * D, (h + 1) * D)
            for i in range(T):
                logits = np.array([0.5 * float(q[b, i, rows].astype(float) @ k[b, j, rows]) for j in range(T)])
                chances = np.exp(logits - logits.max())
                found[b, i, rows] = chances / chances.sum() @ v[b, :, rows]
    return found


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_attention_becomes_one_node(form: str) -> None:
    model = attention(FORMS[form])
    feeds = {name: random(B, T, C, seed=seed) for seed, name in enumerate("qkv")}
    expected = mixed(**feeds)
    np.testing.assert_allclose(run(model, feeds)["y"], expected, atol=1e-5)
    assert FuseAttention(batch=B)(model).modified
    checked(model)
    assert operators(model) == {"Reshape": 4, "Transpose": 4, "Attention": 1}
    (node,) = (node for node in model.graph if node.op_type == "Attention")
    # Canonical: the projections themselves, split into heads, and the whole scale on the node.
    sources = [value.producer().inputs[0].producer().inputs[0].name for value in node.inputs]  # type: ignore[union-attr]
    assert sources == ["q", "k", "v"]
    assert node.attributes["scale"].as_float() == pytest.approx(0.5)
    assert all(0 in value.const_value.numpy() for value in model.graph.initializers.values())  # type: ignore[union-attr]
    np.testing.assert_allclose(run(model, feeds)["y"], expected, atol=1e-5)
    assert not FuseAttention(batch=B)(model).modified


def test_two_attentions_in_one_scope_keep_their_names_apart() -> None:
    again = PLAIN
    for name in ("qs", "qh", "ks", "kh", "kt", "vs", "vh", "dots", "logits", "p", "mixed", "turned", "y"):
        again = re.sub(rf"\b{name}\b", f"{name}2", again)
    again = again.replace("Reshape(q,", "Reshape(y,")
    model = attention(f"{PLAIN} {again}")
    model.graph.outputs[0] = next(o for node in model.graph for o in node.outputs if o.name == "y2")
    for number, node in enumerate(node for node in model.graph if node.op_type == "Softmax"):
        node.name = f"/Softmax_{number}"
    feeds = {name: random(B, T, C, seed=seed) for seed, name in enumerate("qkv")}
    expected = mixed(mixed(**feeds), feeds["k"], feeds["v"])
    FuseAttention(batch=B)(model)
    checked(model)
    assert operators(model)["Attention"] == 2
    np.testing.assert_allclose(run(model, feeds)["y2"], expected, atol=1e-5)


def test_attention_of_other_tokens_is_left_alone() -> None:
    """A pooling head looks with one query."""
    pooled = """qo = Slice(y0, first, second, second) qs2 = Reshape(qo, split) qh2 = Transpose<perm = [0,2,1,3]>(qs2)
        dots2 = MatMul(qh2, kt) p2 = Softmax(dots2) m2 = MatMul(p2, vh) t2 = Transpose<perm = [0,2,1,3]>(m2)
        o2 = Reshape(t2, pool) y = Add(y0, o2)"""
    body = FORMS["scale on the logits"].replace("y =", "y0 =") + pooled.replace("pool)", "one)")
    model = attention("one = Constant<value = int64[3] {2, 1, -1}>() " + body)
    assert FuseAttention(batch=B)(model).modified
    checked(model)
    assert operators(model)["Softmax"] == operators(model)["Attention"] == 1


MASKED = PLAIN.replace("logits = Mul(dots, half)", "scaled = Mul(dots, half) logits = Add(scaled, mask)")
# The first token of the keys is the last of the others.
TURNED = PLAIN.replace("ks = Reshape(k, split)", "kr = Gather<axis = 1>(k, order) ks = Reshape(kr, split)")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (MASKED, r"\(Add\) lies between the product and .*: looked for .* export it without a mask"),
        (TURNED, r"'k' \(2, 5, 12\) is the k of .*: its entries don't hold the heads of 2 pictures, with every token"),
        (
            PLAIN.replace(JOIN, "y = Reshape(mixed, join)"),
            r"before the heads stand side by side: expected \(2, 5, 12\)",
        ),
        (PLAIN.replace("mixed = MatMul(p, vh)", "r = Sqrt(p) mixed = MatMul(r, vh)"), r"goes to \['Sqrt'\]: expected"),
        ("a = Add(q, k) y = Add(a, v)", "no attention in the graph: looked for MatMul.*found 0 Softmax nodes"),
    ],
)
def test_what_isnt_one_node_is_refused(body: str, message: str) -> None:
    with pytest.raises(GraphRefusal, match=message):
        FuseAttention(batch=B)(attention(body))


def test_attention_needs_its_opset() -> None:
    with pytest.raises(GraphRefusal, match="Attention needs opset 23, the graph has 18"):
        FuseAttention(batch=B)(attention(PLAIN, opset=18))
