"""Layer norms that another exporter wrote in parts become one node, and what only looks like one stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from text_graphs import checked, operators, parsed, random
from towers import run

from lmmprune.errors import GraphRefusal
from lmmprune.passes.foreign.fuse_layer_norm import FuseLayerNorm


def norm(x: str, out: str, *, square: str = "Pow(d, two)", inverse: bool = False, axis: int = -1) -> str:
    divided = "r = Reciprocal(s) n = Mul(d, r)" if inverse else "n = Div(d, s)"
    body = (
        f"m = ReduceMean({x}, axis{axis + 3}) d = Sub({x}, m) q = {square} v = ReduceMean(q, axis{axis + 3})"
        f" e = Add(v, eps) s = Sqrt(e) {divided} g = Mul(n, gain) {out} = Add(g, shift)"
    )
    for name in "mdqvesnrg":
        body = body.replace(f"{name} =", f"{name}_{out} =").replace(f"({name},", f"({name}_{out},")
        body = body.replace(f"({name})", f"({name}_{out})").replace(f", {name})", f", {name}_{out})")
    return body


def with_norms(*bodies: str, replace: tuple[str, str] = ("", "")) -> ir.Model:
    text = (
        '<ir_version: 10, opset_import: ["" : 23]> g (float[2,4,4] x) => (float[2,4,4] y)'
        " <float[4] gain = {1, 2, 3, 4}, float[4] shift = {5, 6, 7, 8}, float two = {2}, float eps = {0.01},"
        f" int64[1] axis2 = {{-1}}, int64[1] axis1 = {{-2}}> {{ {' '.join(bodies)} }}"
    )
    assert replace[0] in text
    return parsed(text.replace(*replace))


def normalized(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.01) * [1, 2, 3, 4] + [5, 6, 7, 8]


@pytest.mark.parametrize("form", [{}, {"square": "Mul(d, d)"}, {"inverse": True}])
def test_decomposed_norms_are_fused_one_behind_the_other(form: dict[str, Any]) -> None:
    model = with_norms(norm("x", "h", **form), norm("h", "y", **form))
    assert FuseLayerNorm()(model).modified
    checked(model)
    assert operators(model) == {"LayerNormalization": 2}
    x = random(2, 4, 4)
    np.testing.assert_allclose(run(model, {"x": x})["y"], normalized(normalized(x)), rtol=1e-4)
    assert not FuseLayerNorm()(model).modified


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Mul(n_y, gain)", "Mul(gain, n_y)"),
        ("Add(v_y, eps)", "Add(eps, v_y)"),
        ("Add(g_y, shift)", "Add(shift, g_y)"),
        ("{-1}", "{2}"),
    ],
)
def test_norms_in_another_order_of_their_sides(one: str, other: str) -> None:
    model = with_norms(norm("x", "y"), replace=(one, other))
    assert FuseLayerNorm()(model).modified
    checked(model)
    x = random(2, 4, 4)
    np.testing.assert_allclose(run(model, {"x": x})["y"], normalized(x), rtol=1e-4)


@pytest.mark.parametrize(
    "body",
    [
        norm("x", "y", axis=-2),
        norm("x", "y").replace("Pow(d_y, two)", "Mul(d_y, x)"),
        norm("x", "y").replace("Mul(n_y, gain)", "Mul(n_y, x)"),
    ],
)
def test_what_only_looks_like_a_norm_stays(body: str) -> None:
    model = with_norms(body)
    before = operators(model)
    assert not FuseLayerNorm()(model).modified
    assert operators(model) == before


def test_norms_need_axes_as_inputs() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2,4] x) => (float[2,4] y) { y = Sqrt(x) }'
    with pytest.raises(GraphRefusal, match="expected opset 18 or newer, the graph has 17"):
        FuseLayerNorm()(parsed(text))


# --- attention -------------------------------------------------------------------------------------------------------
