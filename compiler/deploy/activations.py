"""How much memory the values between the layers take: the most that live at once, when the graph runs in its order."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from lmmprune.errors import require

if TYPE_CHECKING:
    import onnx_ir as ir

# These give their input another shape and move nothing.
_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten"})


def activation_bytes(graph: Path, *, seq: int = 0, past: int = 0, image_tokens: int = 0) -> int:
    """Return the peak of intermediate values in bytes; a compiler that fuses layers needs less.

    Inputs and outputs are left out: the key/value cache and the logits belong to who runs the graph.

    Args:
        graph: The ONNX file; no weight is read.
        seq: Tokens that come in.
        past: Length of every cache.
        image_tokens: Visual tokens that come in.

    Raises:
        MissingExtraError: onnx-ir isn't installed.
    """
    require("onnxscript", "export")
    import onnx_ir as ir

    from lmmprune.compiler.onnx_files.load_onnx import load_onnx
    from lmmprune.passes.graph.specialize import specialize

    model = load_onnx(graph, weights=False)
    for value in model.graph.initializers.values():
        # Shapes are computed from integers; and onnx-ir doesn't read weights that a bundle shares with its checkpoint.
        if isinstance(value.const_value, ir.ExternalTensor) and not value.const_value.dtype.is_integer():
            value.const_value = None
    return peak_bytes(specialize(model, seq=seq, past=past, image_tokens=image_tokens))


def peak_bytes(model: ir.Model) -> int:
    """Return the most bytes that live at once in a graph whose shapes are known; a value dies after its last reader."""
    nodes = list(model.graph)
    outside = {*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()}
    owner: dict[ir.Value, ir.Value] = {}
    last: dict[ir.Value, int] = {}
    for index, node in enumerate(nodes):
        for value in node.inputs:
            if value is not None:
                last[owner.get(value, value)] = index
        if node.op_type in _VIEWS and node.inputs[0] is not None:
            owner[node.outputs[0]] = owner.get(node.inputs[0], node.inputs[0])
    dying: dict[int, list[ir.Value]] = {}
    for value, index in last.items():
        dying.setdefault(index, []).append(value)
    live, peak = 0, 0
    for index, node in enumerate(nodes):
        fresh = [value for value in node.outputs if value not in outside and value not in owner]
        live += sum(_size(value) for value in fresh)
        peak = max(peak, live)
        live -= sum(_size(value) for value in dying.get(index, ()) if value not in outside)
        live -= sum(_size(value) for value in fresh if value not in last)  # read by nobody
    return peak


def _size(value: ir.Value) -> int:
    if value.shape is None or value.dtype is None or not value.shape.is_static():
        return 0  # shape arithmetic
    return math.prod(int(dim) for dim in value.shape.numpy()) * math.ceil(value.dtype.bitwidth / 8)
