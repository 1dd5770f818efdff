"""RMSNormalization and Gelu as primitives: golden graphs, numerics against the formulas in NumPy, refusals."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from lowering import shown
from towers import run

from lmmprune.errors import GraphRefusal
from lmmprune.passes.lower.lower_gelu import LowerGelu
from lmmprune.passes.lower.lower_rms_norm import LowerRmsNorm


def graph(inputs: str, node: str, kind: str = "float", shape: str = "[2,3,6]") -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["" : 23]> g ({inputs}) => ({kind}{shape} y) {{ y = {node} }}'
    return ir.from_onnx_text(text)


def norm(x: np.ndarray, scale: np.ndarray, epsilon: float, axes: tuple[int, ...]) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(axes, keepdims=True) + epsilon) * scale


def test_a_norm_in_half_precision_has_its_statistics_in_float32() -> None:
    model = graph("float16[2,3,6] x, float16[6] w", "RMSNormalization<epsilon = 0.5>(x, w)", "float16")
    assert LowerRmsNorm()(model).modified
    assert not LowerRmsNorm()(model).modified
    assert shown(model) == [
        "Cast_1 = Cast(x)",
        "Pow_3 = Pow(Cast_1, 2.0)",
        "ReduceMean_5 = ReduceMean(Pow_3, [2])",
        "Add_7 = Add(ReduceMean_5, 0.5)",
        "Sqrt_8 = Sqrt(Add_7)",
        "Div_9 = Div(Cast_1, Sqrt_8)",
        "Cast_10 = Cast(Div_9)",
        "y = Mul(Cast_10, w)",
    ]
    # Squares of these are beyond float16.
    x = (np.random.default_rng(0).standard_normal((2, 3, 6)) * 2000).astype(np.float16)
    w = np.linspace(0.5, 2, 6).astype(np.float16)
    np.testing.assert_allclose(run(model, {"x": x, "w": w})["y"], norm(x, w, 0.5, (-1,)), rtol=2e-3)


@pytest.mark.parametrize(("axis", "axes", "shape"), [(-1, (2,), "[6]"), (1, (1, 2), "[3,6]")])
def test_a_norm_in_float32_over_any_axes(axis: int, axes: tuple[int, ...], shape: str) -> None:
    model = graph(f"float[2,3,6] x, float{shape} w", f"RMSNormalization<axis = {axis}>(x, w)")
    LowerRmsNorm()(model)
    assert not any("Cast" in line for line in shown(model))
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 3, 6)).astype(np.float32)
    w = rng.standard_normal((3, 6)[-len(axes) :]).astype(np.float32)
    np.testing.assert_allclose(run(model, {"x": x, "w": w})["y"], norm(x, w, 1e-5, axes), atol=2e-6)


def test_the_result_has_the_type_of_the_scale() -> None:
    model = graph("float16[2,3,6] x, float[6] w", "RMSNormalization(x, w)")
    LowerRmsNorm()(model)
    x, w = np.ones((2, 3, 6), np.float16), np.ones(6, np.float32)
    np.testing.assert_allclose(run(model, {"x": x, "w": w})["y"], norm(x, w, 1e-5, (-1,)), atol=1e-6)


def test_a_norm_of_unknown_rank_is_refused() -> None:
    model = graph("float[2,3,6] x, float[6] w", "RMSNormalization(x, w)")
    model.graph.inputs[0].shape = None
    with pytest.raises(GraphRefusal, match="infer the shapes first"):
        LowerRmsNorm()(model)


@pytest.mark.parametrize("kind", ["none", "tanh"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float", 1e-6), ("float16", 3e-3)])
def test_gelu_is_its_formula(kind: str, dtype: str, tolerance: float) -> None:
    model = graph(f"{dtype}[2,3,6] x", f'Gelu<approximate = "{kind}">(x)', dtype)
    assert LowerGelu()(model).modified
    assert not LowerGelu()(model).modified
    x = np.linspace(-6, 6, 36).reshape(2, 3, 6).astype(np.float32 if dtype == "float" else np.float16)
    exact = x.astype(np.float64)
    if kind == "none":
        step = np.vectorize(math.erf)(exact / math.sqrt(2))
    else:
        step = np.tanh(math.sqrt(2 / math.pi) * (exact + 0.044715 * exact**3))
    np.testing.assert_allclose(run(model, {"x": x})["y"], 0.5 * exact * (1 + step), atol=tolerance)


def test_gelu_as_text() -> None:
    model = graph("float[2,3,6] x", "Gelu(x)")
    LowerGelu()(model)
    assert shown(model) == [
        f"Mul_2 = Mul(x, {float(np.float32(math.sqrt(0.5)))})",
        "Erf_3 = Erf(Mul_2)",
        "Mul_5 = Mul(x, 0.5)",
        "Add_7 = Add(Erf_3, 1.0)",
        "y = Mul(Mul_5, Add_7)",
    ]


def test_gelu_of_another_kind_is_refused() -> None:
    with pytest.raises(GraphRefusal, match="approximate='sigmoid'"):
        LowerGelu()(graph("float[2,3,6] x", 'Gelu<approximate = "sigmoid">(x)'))
