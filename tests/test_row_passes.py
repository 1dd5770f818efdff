"""The passes that bring rows of tokens and their weights into one form, on small graphs written as text."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from towers import run

from lmmprune.errors import GraphRefusal
from lmmprune.lazy import lazy
from lmmprune.passes.foreign.drop_open_masks import DropOpenMasks
from lmmprune.passes.foreign.fuse_attention import FuseAttention
from lmmprune.passes.foreign.lower_einsum import LowerEinsum
from lmmprune.passes.foreign.lower_gemm import LowerGemm
from lmmprune.passes.foreign.move_weights import MoveWeights
from lmmprune.passes.foreign.put_batch_first import PutBatchFirst
from lmmprune.passes.graph.shapes import infer_shapes

B, T, H, D = 2, 5, 3, 4
C = H * D


def parsed(body: str) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23]> g {body}')
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    infer_shapes(model)
    return model


def checked(model: ir.Model) -> dict[str, int]:
    """Return how many nodes of each operator a well-formed graph has."""
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    return dict(Counter(node.op_type for node in model.graph))


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def shaped(shape: tuple[int, ...]) -> str:
    return f"float[{','.join(map(str, shape))}]"


# --- Einsum ----------------------------------------------------------------------------------------------------------

EQUATIONS: list[tuple[str, tuple[tuple[int, ...], ...]]] = [
    ("bhqd,bhkd->bhqk", ((2, 3, 5, 4), (2, 3, 5, 4))),
    ("bhij,bhjd->bhid", ((2, 3, 5, 5), (2, 3, 5, 4))),
    ("bqhd,bkhd->bhqk", ((2, 5, 3, 4), (2, 5, 3, 4))),
    ("bhqk,bkhd->bqhd", ((2, 3, 5, 5), (2, 5, 3, 4))),
    ("...qd,...kd->...qk", ((2, 3, 5, 4), (2, 3, 5, 4))),
    ("...ij,...jd", ((2, 3, 5, 5), (2, 3, 5, 4))),
    ("btc,chd->bthd", ((2, 5, 6), (6, 3, 4))),
    ("hdc,btc->bhtd", ((3, 4, 6), (2, 5, 6))),
    ("bthd,hdc->btc", ((2, 5, 3, 4), (3, 4, 6))),
    ("ij,jk", ((2, 3), (3, 4))),
    ("i,j->ji", ((2,), (3,))),
    ("bij,bij->b", ((2, 3, 4), (2, 3, 4))),
    ("bik,jl->bj", ((2, 3, 4), (5, 6))),
    ("bhnd->bnhd", ((2, 3, 5, 4),)),
    ("bij->bj", ((2, 3, 4),)),
    ("ab", ((2, 3),)),
]


@pytest.mark.parametrize(("equation", "shapes"), EQUATIONS)
def test_einsum_is_its_formula(equation: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    arrays = {name: random(*shape, seed=seed) for seed, (name, shape) in enumerate(zip("xw", shapes, strict=False))}
    expected = np.einsum(equation, *arrays.values())
    formal = ", ".join(f"{shaped(array.shape)} {name}" for name, array in arrays.items())
    model = parsed(
        f'({formal}) => ({shaped(expected.shape)} y) {{ y = Einsum<equation = "{equation}">({", ".join(arrays)}) }}'
    )
    assert LowerEinsum()(model).modified
    assert "Einsum" not in checked(model)
    np.testing.assert_allclose(run(model, arrays)["y"], expected, atol=1e-5)
    assert not LowerEinsum()(model).modified


def test_a_product_of_tokens_with_a_weight_keeps_their_axes() -> None:
    model = parsed(
        f"({shaped((B, T, 6))} x) => ({shaped((B, T, H, D))} y) <{shaped((H, D, 6))} w = {{{', '.join('1' * 72)}}}>"
        ' { y = Einsum<equation = "hdc,btc->bthd">(w, x) }'
    )
    LowerEinsum()(model)
    product = next(node for node in model.graph if node.op_type == "MatMul")
    assert [list(value.shape or ()) for value in product.inputs if value is not None] == [[B, T, 6], [6, C]]


@pytest.mark.parametrize(
    ("equation", "message"),
    [("bii->b", "takes a diagonal"), ("bij,bjk,bkl->bil", "has 3 factors, expected one or two")],
)
def test_other_equations_are_refused(equation: str, message: str) -> None:
    terms = equation.split("->")[0].split(",")
    names = [f"x{index}" for index in range(len(terms))]
    formal = ", ".join(f"float[2,3,3] {name}" for name in names)
    result = shaped(tuple(2 if letter == "b" else 3 for letter in equation.split("->")[1]))
    model = parsed(f'({formal}) => ({result} y) {{ y = Einsum<equation = "{equation}">({", ".join(names)}) }}')
    with pytest.raises(GraphRefusal, match=message):
        LowerEinsum()(model)


# --- Gemm ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", ["", "<transB = 1>", "<transA = 1, transB = 1, alpha = 2.0, beta = 0.5>"])
def test_gemm_is_its_formula(settings: str) -> None:
    x, w, bias = random(3, 3), random(3, 3, seed=1), random(3, seed=2)
    model = parsed(
        f"(float[3,3] x, float[3,3] w, float[3] bias) => (float[3,3] y) {{ y = Gemm{settings}(x, w, bias) }}"
    )
    left, right = (x.T if "transA" in settings else x), (w.T if "transB" in settings else w)
    factors = (2, 0.5) if "alpha" in settings else (1, 1)
    assert LowerGemm()(model).modified
    assert "Gemm" not in checked(model)
    found = run(model, {"x": x, "w": w, "bias": bias})["y"]
    np.testing.assert_allclose(found, factors[0] * left @ right + factors[1] * bias, atol=1e-5)


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_are_moved_while_they_are_read() -> None:
    weight = np.arange(3 * C * C, dtype=np.float16).reshape(3 * C, C) / 100
    zeros = ", ".join("0" * 3 * C * C)
    model = parsed(
        f"({shaped((B, T, C))} x) => ({shaped((B, T, C))} y) <{shaped((3 * C, C))} w = {{{zeros}}},"
        f" float[4] p = {{1, 2, 3, 4}}, float[8] q = {{{', '.join('5' * 8)}}}, int64[1] one = {{1}},"
        f" int64[1] two = {{2}}, int64[3] turned = {{0, 0, {C}}}> {{"
        f" a, b, c = Split<num_outputs = 3>(w) t = Transpose(b) m = MatMul(x, t) bias = Concat<axis = 0>(q, p)"
        " y = Add(m, bias) }"
    )
    reads = []

    def read() -> np.ndarray:
        reads.append(1)
        return weight

    model.graph.initializers["w"].const_value = lazy(read, dtype=ir.DataType.FLOAT, shape=weight.shape, name="w")
    assert MoveWeights()(model).modified
    assert reads == []
    assert not MoveWeights()(model).modified
    assert checked(model) == {"MatMul": 1, "Add": 1}
    assert "w" not in model.graph.initializers
    x = random(B, T, C)
    bias = [5] * 8 + [1, 2, 3, 4]
    np.testing.assert_allclose(run(model, {"x": x})["y"], x @ weight[C : 2 * C].astype(np.float32).T + bias, rtol=1e-4)


# --- rows ------------------------------------------------------------------------------------------------------------

WEIGHTS = (
    f"{shaped((C, C))} w = {{{', '.join(str(n % 7 / 7) for n in range(C * C))}}},"
    f" {shaped((C,))} g = {{{', '.join(str(n / 9) for n in range(C))}}},"
    f" {shaped((T, 1, C))} place = {{{', '.join(str(n % 5) for n in range(T * C))}}},"
    f" int64[2] flat = {{-1, {C}}}, int64[3] back = {{{T}, {B}, {C}}}, int64[1] zero = {{0}}, int64 first = {{0}},"
    f" int64[1] one = {{1}}, int64[1] end = {{99}}"
)
ROWS: dict[str, tuple[str, tuple[int, ...], dict[str, int]]] = {
    "tokens first and back": (
        "t = Transpose<perm = [1,0,2]>(x) p = Add(t, place) n = LayerNormalization(p, g, g) m = MatMul(n, w)"
        " s = Add(m, p) y = Transpose<perm = [1,0,2]>(s)",
        (B, T, C),
        # One turns the constant.
        {"Transpose": 1, "Add": 2, "LayerNormalization": 1, "MatMul": 1},
    ),
    "as a matrix": (
        "t = Transpose<perm = [1,0,2]>(x) f = Reshape(t, flat) m = MatMul(f, w) r = Relu(m) b = Reshape(r, back)"
        " s = Add(b, t) y = Transpose<perm = [1,0,2]>(s)",
        (B, T, C),
        {"MatMul": 1, "Relu": 1, "Add": 1},
    ),
    "one token of each picture": (
        "t = Transpose<perm = [1,0,2]>(x) m = MatMul(t, w) y = Gather<axis = 0>(m, first)",
        (B, C),
        {"MatMul": 1, "Gather": 1},
    ),
    "some tokens, and one before them": (
        "t = Transpose<perm = [1,0,2]>(x) m = MatMul(t, w) c = Slice(m, zero, one, zero) r = Slice(t, one, end, zero)"
        " j = Concat<axis = 0>(c, r) y = Transpose<perm = [1,0,2]>(j)",
        (B, T, C),
        {"MatMul": 1, "Slice": 2, "Concat": 1},
    ),
    "some channels": (
        "t = Transpose<perm = [1,0,2]>(x) m = MatMul(t, w) a, b, c = Split<axis = 2, num_outputs = 3>(m)"
        " s = Mul(a, b) j = Concat<axis = -1>(s, c) y = Transpose<perm = [1,0,2]>(j)",
        (B, T, 8),
        {"MatMul": 1, "Split": 1, "Mul": 1, "Concat": 1},
    ),
    "handed out in their own order": (
        "t = Transpose<perm = [1,0,2]>(x) y = MatMul(t, w)",
        (T, B, C),
        {"MatMul": 1, "Transpose": 1},
    ),
    "something that looks at all tokens": (
        "t = Transpose<perm = [1,0,2]>(x) m = MatMul(t, w) c = CumSum(m, first) y = Transpose<perm = [1,0,2]>(c)",
        (B, T, C),
        {"MatMul": 1, "Transpose": 2, "CumSum": 1},
    ),
}


@pytest.mark.parametrize("kind", ROWS)
def test_rows_have_pictures_first(kind: str) -> None:
    body, shape, wanted = ROWS[kind]
    model = parsed(f"({shaped((B, T, C))} x) => ({shaped(shape)} y) <{WEIGHTS}> {{ {body} }}")
    x = random(B, T, C)
    expected = run(model, {"x": x})["y"]
    assert PutBatchFirst(batch=B)(model).modified
    assert checked(model) == wanted
    np.testing.assert_allclose(run(model, {"x": x})["y"], expected, atol=1e-5)
    assert not PutBatchFirst(batch=B)(model).modified


def test_rows_that_have_it_stay() -> None:
    body = "n = LayerNormalization(x, g, g) y = MatMul(n, w)"
    model = parsed(f"({shaped((B, T, C))} x) => ({shaped((B, T, C))} y) <{WEIGHTS}> {{ {body} }}")
    assert not PutBatchFirst(batch=B)(model).modified


# --- attention of one product ----------------------------------------------------------------------------------------

_FINISH = {
    "explicit": "kt = Transpose<perm = [0,1,3,2]>(k) l = MatMul(q, kt) h = Mul(l, half) p = Softmax(h)"
    " z = MatMul(p, v)",
    "one node": "z = Attention<scale = 0.5>(q, k, v)",
}
_JOIN = "zt = Transpose<perm = [0,2,1,3]>(z) y = Reshape(zt, join)"
_SQUEEZED = " ".join(f"{name} = Squeeze({name}5, zero)" for name in "qkv")
ONE: dict[str, tuple[str, str, dict[str, Any]]] = {
    # Before the attention; how its entries lie in a row; what the canonical form needs besides.
    "three, heads, entries": (
        f"r = Reshape(x, sho) t = Transpose<perm = [2,0,3,1,4]>(r) q5, k5, v5 = Split<num_outputs = 3>(t) {_SQUEEZED}",
        "shd",
        {"Slice": 3},
    ),
    "heads, three, entries": (
        f"r = Reshape(x, hso) t = Transpose<perm = [3,0,2,1,4]>(r) q5, k5, v5 = Split<num_outputs = 3>(t) {_SQUEEZED}",
        "hsd",
        {"Gather": 3},
    ),
    "entries, three, heads": (
        f"r = Reshape(x, dsh) t = Transpose<perm = [3,0,4,1,2]>(r) q5, k5, v5 = Split<num_outputs = 3>(t) {_SQUEEZED}",
        "dsh",
        {"Gather": 3},
    ),
    "cut first": (
        "qf, kf, vf = Split<axis = -1, num_outputs = 3>(x) qs = Reshape(qf, hd) ks = Reshape(kf, hd)"
        " vs = Reshape(vf, hd) q = Transpose<perm = [0,2,1,3]>(qs)"
        " k = Transpose<perm = [0,2,1,3]>(ks) v = Transpose<perm = [0,2,1,3]>(vs)",
        "shd",
        {"Slice": 3},
    ),
}


@pytest.mark.parametrize("finish", _FINISH)
@pytest.mark.parametrize("layout", ONE)
def test_one_product_for_q_k_and_v(layout: str, finish: str) -> None:
    body, letters, beside = ONE[layout]
    model = parsed(
        f"({shaped((B, T, 3 * C))} x) => ({shaped((B, T, C))} y) <int64[5] sho = {{0, 0, 3, {H}, {D}}},"
        f" int64[5] hso = {{0, 0, {H}, 3, {D}}}, int64[5] dsh = {{0, 0, {D}, 3, {H}}}, int64[1] zero = {{0}},"
        f" int64[4] hd = {{0, 0, {H}, {D}}}, int64[3] join = {{0, 0, {C}}}, float half = {{0.5}}>"
        f" {{ {body} {_FINISH[finish]} {_JOIN} }}"
    )
    x = random(B, T, 3 * C)
    sizes = {"s": 3, "h": H, "d": D}
    rows = x.reshape(B, T, *(sizes[letter] for letter in letters)).astype(np.float64)
    q, k, v = np.einsum(f"bt{letters}->sbhtd", rows)
    logits = 0.5 * np.einsum("bhid,bhjd->bhij", q, k)
    chances = np.exp(logits - logits.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    expected = np.einsum("bhij,bhjd->bihd", chances, v).reshape(B, T, C)
    np.testing.assert_allclose(run(model, {"x": x})["y"], expected, atol=1e-5)
    assert FuseAttention(batch=B)(model).modified
    assert checked(model) == {"Reshape": 4, "Transpose": 4, "Attention": 1, **beside}
    np.testing.assert_allclose(run(model, {"x": x})["y"], expected, atol=1e-5)
    assert not FuseAttention(batch=B)(model).modified


def test_an_attention_of_three_axes() -> None:
    model = parsed(
        f"({shaped((B, T, C))} q, {shaped((B, T, C))} k, {shaped((B, T, C))} v) => ({shaped((B, T, C))} y)"
        f" {{ y = Attention<q_num_heads = {H}, kv_num_heads = {H}, scale = 0.3>(q, k, v) }}"
    )
    feeds = {name: random(B, T, C, seed=seed) for seed, name in enumerate("qkv")}
    expected = run(model, feeds)["y"]
    assert FuseAttention(batch=B)(model).modified
    assert checked(model) == {"Reshape": 4, "Transpose": 4, "Attention": 1}
    np.testing.assert_allclose(run(model, feeds)["y"], expected, atol=1e-5)
    assert not FuseAttention(batch=B)(model).modified


# --- masks that hide nothing -----------------------------------------------------------------------------------------

_OPEN = {
    "added zeros": "m = Add(l, zeros) p = Softmax(m)",
    "chosen everywhere": "m = Where(true, l, zeros) p = Softmax(m)",
    "guarded": "s = Softmax(l) n = IsNaN(s) p = Where(n, none, s)",
    "added and guarded": "m = Add(zeros, l) s = Softmax(m) n = IsNaN(s) p = Where(n, none, s)",
}
_TRUE, _ZEROS = ", ".join("1" * T * T), ", ".join("0" * T * T)


def masked(body: str, zeros: str = _ZEROS) -> ir.Model:
    size = shaped((B, H, T, D))
    return parsed(
        f"({size} q, {size} k, {size} v) => ({size} y) <float[1,1,{T},{T}] zeros = {{{zeros}}}, float none = {{0}},"
        f" bool[{T},{T}] true = {{{_TRUE}}}> {{ {body} }}"
    )


@pytest.mark.parametrize("kind", _OPEN)
def test_masks_that_hide_nothing_are_dropped(kind: str) -> None:
    feeds = {name: random(B, H, T, D, seed=seed) for seed, name in enumerate("qkv")}
    product = "kt = Transpose<perm = [0,1,3,2]>(k) l = MatMul(q, kt)"
    model = masked(f"{product} {_OPEN[kind]} y = MatMul(p, v)")
    expected = run(model, feeds)["y"]
    assert DropOpenMasks()(model).modified
    assert checked(model) == {"Transpose": 1, "MatMul": 2, "Softmax": 1}
    np.testing.assert_allclose(run(model, feeds)["y"], expected, atol=1e-6)
    assert not DropOpenMasks()(model).modified
    # Something that differs between tokens stays.
    other = masked(f"{product} {_OPEN['added and guarded']} y = MatMul(p, v)", zeros=_ZEROS[:-1] + "1")
    assert not DropOpenMasks()(other).modified


@pytest.mark.parametrize("mask", ["true", "zeros"])
def test_the_mask_of_one_node(mask: str) -> None:
    feeds = {name: random(B, H, T, D, seed=seed) for seed, name in enumerate("qkv")}
    model = masked(f"y = Attention(q, k, v, {mask})")
    expected = run(model, feeds)["y"]
    assert DropOpenMasks()(model).modified
    (node,) = model.graph
    assert len(node.inputs) == 3
    np.testing.assert_allclose(run(model, feeds)["y"], expected, atol=1e-6)
    assert not DropOpenMasks()(masked("y = Attention(q, k, v, zeros)", zeros=_ZEROS[:-1] + "9")).modified
