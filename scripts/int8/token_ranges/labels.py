"""How activations are called: by the block that reads them."""

from __future__ import annotations

import onnx_ir as ir

from lmmprune.passes.find.blocks import find_blocks
from lmmprune.passes.int8.insert_qdq import activations

SCHEME = "u8s8"
RATIOS = (0.0, 0.5, 0.75)
FIRST = {"vision": "CLS", "decoder": "BOS"}
# Where a graph's first token is neither CLS nor BOS: pictures, patches and the last token alone.
NO_FIRST = ("patch", "projector", "lm_head")


def labels(model: ir.Model) -> dict[str, str]:
    """Return activation -> the block that reads it (or makes it, for the patch embedding's output)."""
    blocks = find_blocks(model)
    found: dict[str, str] = {}
    for node, block in blocks.items():
        for value, end in ((node.inputs[0], ""), (node.outputs[0], " output")):
            found.setdefault(str(value.name) if value is not None else "", block.name + end)
    names, seen = {}, set()
    for name in activations(model, SCHEME):
        label = found[name]
        while label in seen:  # the projector has two layers
            label += " 2"
        seen.add(label)
        names[name] = label
    return names
