"""RotaryEmbedding as primitives: golden graphs, numerics against the formula in NumPy, refusals."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from lowering import lowered, shown
from towers import run

from lmmprune.errors import GraphRefusal
from lmmprune.passes.lower.lower_rotary import LowerRotary

B, H, S, D = 2, 3, 4, 8


def graph(inputs: str, body: str, outputs: str = "float[2,3,4,8] y") -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23]> g ({inputs}) => ({outputs}) {{ {body} }}')


def formula(x: np.ndarray, angles: np.ndarray, turned: int, *, interleaved: bool) -> np.ndarray:
    """Multiply complex numbers made of pairs of the first ``turned`` dimensions by e^(i angle): x [B,H,S,D]."""
    head, rest = x[..., :turned], x[..., turned:]
    pairs = (
        head.reshape(*x.shape[:-1], turned // 2, 2) if interleaved else np.stack(np.split(head, 2, axis=-1), axis=-1)
    )
    product = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles[:, None])
    parts = np.stack([product.real, product.imag], axis=-1)
    whole = parts.reshape(head.shape) if interleaved else np.concatenate([parts[..., 0], parts[..., 1]], axis=-1)
    return np.concatenate([whole, rest], axis=-1)


def drawn(turned: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.standard_normal((B, H, S, D)).astype(np.float32), rng.standard_normal((B, S, turned // 2))


def test_angles_get_their_axis_once() -> None:
    body = "a = RotaryEmbedding(x, cos, sin) y = RotaryEmbedding(a, cos, sin)"
    model = lowered(graph("float[2,3,4,8] x, float[2,4,4] cos, float[2,4,4] sin", body), LowerRotary())
    assert shown(model) == [
        "Unsqueeze_2 = Unsqueeze(cos, [1])",
        "Unsqueeze_4 = Unsqueeze(sin, [1])",
        "Split_6_0, Split_6_1 = Split(x, [4, 4])",
        "Mul_7 = Mul(Split_6_0, Unsqueeze_2)",
        "Mul_8 = Mul(Split_6_1, Unsqueeze_4)",
        "Sub_9 = Sub(Mul_7, Mul_8)",
        "Mul_10 = Mul(Split_6_1, Unsqueeze_2)",
        "Mul_11 = Mul(Split_6_0, Unsqueeze_4)",
        "Add_12 = Add(Mul_10, Mul_11)",
        "a = Concat(Sub_9, Add_12)",
        "Split_2_0, Split_2_1 = Split(a, [4, 4])",
        "Mul_3 = Mul(Split_2_0, Unsqueeze_2)",
        "Mul_4 = Mul(Split_2_1, Unsqueeze_4)",
        "Sub_5 = Sub(Mul_3, Mul_4)",
        "Mul_6 = Mul(Split_2_1, Unsqueeze_2)",
        "Mul_7 = Mul(Split_2_0, Unsqueeze_4)",
        "Add_8 = Add(Mul_6, Mul_7)",
        "y = Concat(Sub_5, Add_8)",
    ]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("turned", [8, 4])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("table", [False, True])
def test_every_form_is_the_rotation(interleaved: bool, turned: int, flat: bool, table: bool) -> None:
    x, angles = drawn(turned)
    shape = "[2,4,24]" if flat else "[2,3,4,8]"
    half = turned // 2
    caches = f"float[9,{half}] cos, float[9,{half}] sin, int64[2,4] at" if table else f"float[2,4,{half}] cos"
    caches += "" if table else f", float[2,4,{half}] sin"
    attributes = f"interleaved = {int(interleaved)}, num_heads = 3, rotary_embedding_dim = {turned % D}"
    node = f"y = RotaryEmbedding<{attributes}>(x, cos, sin{', at' if table else ''})"
    model = lowered(graph(f"float{shape} x, {caches}", node, f"float{shape} y"), LowerRotary())
    feeds = {"cos": np.cos(angles), "sin": np.sin(angles)}
    if table:
        at = np.array([[3, 1, 4, 0], [8, 2, 6, 5]])
        places = np.random.default_rng(2).standard_normal((9, half))
        angles = places[at]
        feeds = {"cos": np.cos(places), "sin": np.sin(places), "at": at}
    feeds = {name: array if name == "at" else array.astype(np.float32) for name, array in feeds.items()}
    expected = formula(x, angles, turned, interleaved=interleaved)
    if flat:
        x, expected = (array.swapaxes(1, 2).reshape(B, S, H * D) for array in (x, expected))
    np.testing.assert_allclose(run(model, feeds | {"x": x})["y"], expected, atol=2e-6)


CACHES = "float[2,4,4] cos, float[2,4,4] sin"


@pytest.mark.parametrize(
    ("inputs", "node", "reason"),
    [
        (f"float[2,4,24] x, {CACHES}", "RotaryEmbedding(x, cos, sin)", "doesn't say num_heads"),
        (f"float[2,3,4,7] x, {CACHES}", "RotaryEmbedding(x, cos, sin)", "turns 7 of 7"),
        (f"float[2,3,4,8] x, {CACHES}", "RotaryEmbedding<rotary_embedding_dim = 10>(x, cos, sin)", "turns 10 of 8"),
        ("float[2,3,4,8] x, float[9,4] cos, float[9,4] sin", "RotaryEmbedding(x, cos, sin)", "without position_ids"),
        (f"float[2,3,4,8] x, {CACHES}, int64[2,4] at", "RotaryEmbedding(x, cos, sin, at)", "with position_ids"),
        (f"float[2,3,4,d] x, {CACHES}", "RotaryEmbedding(x, cos, sin)", "a number on axis -1"),
        (f"float[4,8] x, {CACHES}", "RotaryEmbedding(x, cos, sin)", "expected rank 3 or 4"),
    ],
)
def test_refusals(inputs: str, node: str, reason: str) -> None:
    with pytest.raises(GraphRefusal, match=reason):
        LowerRotary()(graph(inputs, f"y = {node}"))
