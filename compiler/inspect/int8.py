"""What is quantized in a graph, block by block, and where it breaks the rules of a runtime."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any


def describe_int8(model: Any, scheme: str | None = None) -> dict[str, Any]:
    """Describe the quantization of a graph.

    Args:
        model: An ``onnx_ir.Model``, ours or another tool's.
        scheme: Name in ``LINTED`` whose rules shall hold; None takes the one that the graph looks like.

    Returns:
        ``scheme`` (None for a float graph), ``blocks``: name -> ``int8``, ``int4``, ``float`` or several, and
        ``findings``: rule, node, what was found, and why it matters.
    """
    from lmmprune.passes.find.blocks import find_blocks
    from lmmprune.passes.int8.lint_qdq import RULES, is_quantized, lint_qdq

    kinds: dict[str, set[str]] = {}
    for node, block in find_blocks(model).items():
        kinds.setdefault(block.name, set()).add(kind_of_weight(node))
    blocks = {name: " and ".join(sorted(found)) for name, found in kinds.items()}
    if not is_quantized(model):
        return {"scheme": None, "blocks": blocks, "findings": []}
    scheme = scheme or looks_like(model)
    findings = [
        {**dataclasses.asdict(finding), "says": RULES[finding.rule].says, "why": RULES[finding.rule].why}
        for finding in lint_qdq(model, scheme)
    ]
    return {"scheme": scheme, "blocks": blocks, "findings": findings}


def kind_of_weight(node: Any) -> str:
    """Return what a node's weight is stored in: ``float``, ``int8`` or ``int4``."""
    from lmmprune.names import NBITS
    from lmmprune.passes.find.blocks import weight_of

    weight = weight_of(node)
    if weight is None or weight.dtype is None or weight.dtype.is_floating_point():
        return "float"
    bits = node.attributes.get_int("bits", 4) if node.op_type == NBITS else weight.dtype.bitwidth
    return f"int{bits}"


def looks_like(model: Any) -> str:
    """Return the scheme whose rules a quantized graph seems to follow, by the type of most activations."""
    import onnx_ir as ir

    from lmmprune.passes.int8.lint_qdq import scheme_of_weights

    operators = Counter(node.op_type for node in model.graph)
    if operators["DynamicQuantizeLinear"]:
        return "u8s8-dynamic"
    kinds = Counter(
        node.inputs[2].dtype if len(node.inputs) > 2 and node.inputs[2] is not None else ir.DataType.UINT8
        for node in model.graph
        if node.op_type == "QuantizeLinear"
    )
    if not kinds:
        return scheme_of_weights(model)
    return "s8s8" if kinds.most_common(1)[0][0] == ir.DataType.INT8 else "u8s8"
