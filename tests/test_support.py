"""The support matrix: one graph per rule that breaks it, and every method's graphs that break none."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from lowering import in_precision
from one_picture import OF_ONE_PICTURE
from test_operators import rewritten

from lmmprune.compiler.lower import RULES, find_violations, require_supported
from lmmprune.compiler.lower.lower import lower
from lmmprune.compiler.targets import operators
from lmmprune.compiler.targets.targets import TARGETS
from lmmprune.errors import TargetError
from lmmprune.lazy import is_lazy, lazy
from lmmprune.passes.graph.shapes import infer_shapes
from lmmprune.passes.int8.insert_qdq import InsertQdq
from lmmprune.passes.lower.cast_float import CastFloat

JP6, RTX = TARGETS["tensorrt-10.3"], TARGETS["tensorrt-rtx"]

X = "float[1,9,4] x"
# Rule -> inputs, output, body and constants of a graph that breaks it, and what is said of it.
BREACHES: dict[str, tuple[str, str, str, str]] = {
    "operator": (X, "float[1,9,4] y", "{ y = Gelu(x) }", "doesn't read Gelu"),
    "type": (X, "float[1,9,4] y", "{ d = Cast<to = 11>(x) y = Cast<to = 1>(d) }", "'d' is double"),
    "float-only": ("int64[1,9] i", "int64[1,2] y", "<int64[1] k = {2}> { v, y = TopK(i, k) }", "TopK reads int64"),
    "rank": (
        X,
        "float[1,1,1,1,1,1,9,1,4] y",
        "<int64[9] n = {1,1,1,1,1,1,9,1,4}> { y = Reshape(x, n) }",
        "9 dimensions",
    ),
    "constant": (f"{X}, int64[1] k", "float[1,9,k] y", "{ y, i = TopK(x, k) }", "input 1, 'k', is computed"),
    "top-k": (
        "float[1,5000] x",
        "float[1,4000] y",
        "<int64[1] k = {4000}> { y, i = TopK(x, k) }",
        "k = 4000, at most 3840",
    ),
    "data-dependent": (X, "int64[3,n] y", "{ y = NonZero(x) }", "what NonZero gives depends on values"),
    "shape-from-data": (
        f"{X}, float[4] f",
        "float[1,n,4] y",
        "<int64[1] a = {0}, int64[1] e = {1}> { s = ArgMax<axis = 0>(f) t = Add(s, e) y = Slice(x, a, t, e) }",
        "'t' is computed from the values of 's' (ArgMax)",
    ),
    "scatter": (
        f"{X}, float[2,4] u",
        "float[1,9,4] y",
        "<int64[2,2] p = {0,3,0,3}> { y = ScatterND(x, p, u) }",
        "name one place twice",
    ),
}


def graph(inputs: str, output: str, body: str, opset: int = 20) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {opset}]> g ({inputs}) => ({output}) {body}')
    infer_shapes(model)
    return model


@pytest.mark.parametrize("rule", BREACHES)
def test_a_breach_is_named(rule: str) -> None:
    inputs, output, body, found = BREACHES[rule]
    violations = find_violations(graph(inputs, output, body), JP6)
    assert rule in {violation.rule for violation in violations}
    (violation,) = [v for v in violations if v.rule == rule and found in v.found]
    assert violation.node
    assert violation.op_type in body
    assert violation.source == RULES[rule].source
    assert str(violation).endswith(RULES[rule].advice)


def test_the_other_rules_are_tried_below() -> None:
    assert set(RULES) - set(BREACHES) == {"opset", "stream", "attention", "int8"}


def test_an_opset_that_is_too_new() -> None:
    model = graph(X, "float[1,9,4] y", "{ y = Neg(x) }", opset=23)
    assert [str(v.rule) for v in find_violations(model, JP6)] == ["opset"]
    with pytest.raises(TargetError, match=r"'tensorrt-10.3' can't take g: the graph is written in opset 23.*up to 21"):
        require_supported(model, JP6)
    require_supported(model, RTX)
    require_supported(model, TARGETS["ort-cpu"])


def test_a_stream_of_another_type() -> None:
    model = graph("bfloat16[4] x", "bfloat16[4] y", "{ y = Neg(x) }")
    assert {v.rule for v in find_violations(model, JP6)} == {"stream"}
    assert not find_violations(model, TARGETS["tensorrt-10.13"])


@pytest.mark.parametrize(
    ("node", "found"),
    [
        ("y, a, b = Attention(q, q, q, , p, p)", "joins a cache itself"),
        ("y, a, b, z = Attention(q, q, q, , p, p)", "more than its first output"),
        ("y = Attention<softcap = 2.0>(q, q, q)", "softcap"),
    ],
)
def test_forms_of_attention(node: str, found: str) -> None:
    more = ", float[1,2,3,8] z" if "z =" in node else ""
    text = f"{{ {node} }}"
    model = graph("float[1,2,3,4] q, float[1,2,5,4] p", f"float[1,2,3,4] y{more}", text, opset=23)
    violations = find_violations(model, RTX)
    assert {v.rule for v in violations} == {"attention"}
    assert any(found in v.found for v in violations)


@pytest.mark.parametrize("target", ["tensorrt-10.16", "tensorrt-11", "tensorrt-rtx"])
@pytest.mark.parametrize(
    ("queries", "keys", "found"),
    [
        ("1,2,3,4", "1,2,5,4", "3 queries read 5 keys, which the target aligns at the upper left"),
        ("1,2,n,4", "1,2,m,4", "n queries read m keys"),
        ("1,2,n,4", "1,2,5,4", "n queries read 5 keys"),
        ("1,2,3,4", "1,2,3,4", None),
        ("1,2,n,4", "1,2,n,4", None),
    ],
)
def test_a_causal_flag_with_other_keys_than_queries(target: str, queries: str, keys: str, found: str | None) -> None:
    for flag in (0, 1):
        body = f"{{ y = Attention<is_causal = {flag}>(q, k, k) }}"
        model = graph(f"float[{queries}] q, float[{keys}] k", f"float[{queries}] y", body, opset=23)
        violations = find_violations(model, TARGETS[target])
        assert [v.rule for v in violations] == (["attention"] if flag and found else [])
        assert all(found and found in v.found for v in violations)


def test_a_causal_flag_where_a_mask_is_needed() -> None:
    model = graph(
        X, "float[1,9,4] y", "{ y = Attention<is_causal = 1, q_num_heads = 1, kv_num_heads = 1>(x, x, x) }", 23
    )
    assert "is_causal is set, the target takes an explicit mask only" in {v.found for v in find_violations(model, JP6)}


def test_scatters_by_computed_or_repeated_elements() -> None:
    inputs, output = "float[4] x, float[2] u", "float[4] y"
    for body, broken in (
        ("<int64[2] i = {1,2}> { y = ScatterElements(x, i, u) }", False),
        ("<int64[2] i = {1,1}> { y = ScatterElements(x, i, u) }", True),
        ('<int64[2] i = {1,1}> { y = ScatterElements<reduction = "add">(x, i, u) }', False),
        ("<int64[2] o = {0,0}, int64[2] n = {1,2}> { i = Add(n, o) j = Mul(i, i) y = ScatterElements(x, j, u) }", True),
    ):
        rules = {v.rule for v in find_violations(graph(inputs, output, body), JP6)}
        assert rules == ({"scatter"} if broken else set()), body


QDQ = """
<float s = {0.5}, int8 z = {ZERO}, int8[4,2] w = {1,2,3,4,5,6,7,8}, float[2] t = {0.1,0.2}, int8[2] o = {0,0}> {
    q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear<axis = 1>(w, t, o)
    y = MatMul(d, v)
}"""


def test_quantized_asymmetrically() -> None:
    assert not find_violations(graph(X, "float[1,9,2] y", QDQ.replace("ZERO", "0")), JP6)
    (violation, *_) = find_violations(graph(X, "float[1,9,2] y", QDQ.replace("ZERO", "3")), JP6)
    assert violation.rule == "int8"
    assert "zero points are constants and 0" in violation.found


def test_weights_only_are_taken_and_not_read() -> None:
    model = in_precision("fastv", "float32")[0]
    InsertQdq(scheme="s8-weights")(model)
    CastFloat(dtype="float16")(model)
    lower(model, JP6)

    def unreadable() -> np.ndarray:
        raise AssertionError("a weight was read")

    for name, value in model.graph.initializers.items():
        if is_lazy(value):
            value.const_value = lazy(unreadable, dtype=value.const_value.dtype, shape=value.shape.numpy(), name=name)
    assert not find_violations(model, JP6)
    assert any(node.op_type == "DequantizeLinear" for node in model.graph)
    assert any(is_lazy(value) for value in model.graph.initializers.values())


@pytest.mark.parametrize("name", sorted(OF_ONE_PICTURE))
def test_no_method_breaks_a_rule_of_the_oldest_target(name: str) -> None:
    for model in rewritten(name):
        CastFloat(dtype="float16")(model)
        lower(model, JP6)


@pytest.mark.parametrize("name", ["freepruner", "fastv"])
def test_no_quantized_graph_breaks_a_rule(name: str) -> None:
    for target in (JP6, RTX):
        for model in in_precision(name, "float16", int8=True):
            lower(model, target)


def test_a_newer_parser_reads_all_that_an_older_one_reads() -> None:
    versions = [(8, 4), (10, 3), (10, 13), (10, 14), (10, 15), (10, 16), (11, 0)]
    for older, newer in itertools.pairwise(versions):
        assert operators.operators(older) <= operators.operators(newer)
    assert {"Attention", "Gelu"}.isdisjoint(operators.operators((10, 13)))
    assert "Attention" in operators.operators((10, 14))
    for target in TARGETS.values():
        if target.parser is not None:
            assert target.native_ops <= operators.operators(target.parser)


def test_indices_are_compared_along_the_axis() -> None:
    model = graph(
        "float[2,2] x, float[2,2] u",
        "float[2,2] y",
        "<int64[2,2] i = {0,1,0,1}> { y = ScatterElements<axis = 1>(x, i, u) }",
    )
    assert not find_violations(model, JP6)
    value = model.graph.initializers["i"]
    value.const_value = ir.Tensor(np.array([[0, 0], [0, 1]]), name="i")
    assert [v.rule for v in find_violations(model, JP6)] == ["scatter"]
