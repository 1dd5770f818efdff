"""What a graph looks like to the passes: inputs, outputs, operators, attention layers, the site of the selection."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from lmmprune.errors import GraphRefusal, InputError, require


def inspect_graph(path: Path) -> dict[str, Any]:
    """Describe an ONNX file without reading its weights.

    Raises:
        InputError: It can't be read as ONNX.
    """
    require("onnx_ir", "export")
    import onnx_ir as ir
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types

    from lmmprune.passes.insert_qdq import quantizable

    try:
        model = ir.load(path)
    except (OSError, DecodeError, ValueError, TypeError) as error:
        raise InputError(f"'{path}' isn't an ONNX file that can be read ({type(error).__name__})") from error
    operators = Counter(node.op_type for node in model.graph)
    return {
        "file": str(path),
        "opset": model.opset_imports.get(""),
        "inputs": [_value(value) for value in model.graph.inputs],
        "outputs": [_value(value) for value in model.graph.outputs],
        "operators": dict(operators.most_common()),
        "weights": {"count": len(model.graph.initializers), "bytes": _bytes(model)},
        "int8_matmuls": operators["DequantizeLinear"] and _quantized(model),
        "float_matmuls": len(quantizable(model)),
        "site": _site(model),
        "attention_layers": _attention_layers(model),
    }


def _site(model: Any) -> dict[str, Any]:
    """Return the site of the selection at the vision output, or why there is none."""
    from lmmprune.passes.anchors import find_vision_anchors
    from lmmprune.passes.select_tokens import KEPT

    outputs = {value.name: value for value in model.graph.outputs}
    if KEPT in outputs:
        nodes = [node.name for node in model.graph if str(node.name).startswith("lmmprune/")]
        return {
            "site": "vision_output",
            "pruned": True,
            "method": str(nodes[0]).split("/")[1] if nodes else None,
            "nodes": len(nodes),
            "tokens_out": outputs[KEPT].shape[1],
        }
    if "logits" in outputs:
        return {"refusal": "a decoder: selection inside it isn't supported yet"}
    try:
        anchors = find_vision_anchors(model)
    except GraphRefusal as error:
        return {"refusal": str(error)}
    return {
        "site": "vision_output",
        "pruned": False,
        "tokens": anchors.tokens,
        "patches": anchors.patches.name,
        "has_cls": anchors.has_cls,
    }


def _attention_layers(model: Any) -> list[dict[str, Any]]:
    """Return every Attention node with the shape of its queries, ``[B,H,T,D]``."""
    layers = [node for node in model.graph if node.op_type == "Attention"]
    return [{"node": node.name, "queries": _value(node.inputs[0])["shape"]} for node in layers]


def _quantized(model: Any) -> int:
    """Count the nodes whose weight comes out of a DequantizeLinear."""
    return sum(
        1
        for node in model.graph
        if node.op_type in {"MatMul", "Gemm", "Conv"}
        and node.inputs[1].producer() is not None
        and node.inputs[1].producer().op_type == "DequantizeLinear"
    )


def _bytes(model: Any) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def _value(value: Any) -> dict[str, Any]:
    shape = None if value.shape is None else [d if isinstance(d, int) else str(d.value) for d in value.shape]
    return {"name": value.name, "dtype": str(value.dtype), "shape": shape}
