"""Small graphs written as text: read with shapes, checked, counted; and numbers to run them with."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir

from lmmprune.passes.graph.shapes import infer_shapes

B, T, H, D = 2, 5, 3, 4
C = H * D


def parsed(text: str) -> ir.Model:
    """Return a checked graph with shapes."""
    model = ir.from_onnx_text(text)
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    infer_shapes(model)
    return model


def operators(model: ir.Model) -> dict[str, int]:
    return dict(Counter(node.op_type for node in model.graph))


def checked(model: ir.Model) -> None:
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- opset -----------------------------------------------------------------------------------------------------------
