"""Graphs for several token counts behind one encoder: small ones that share one file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

WEIGHTS = "buckets.data"


def bucket_file(tokens: int) -> str:
    """Return the name of the graph that makes so many tokens."""
    return f"bucket_{tokens}.onnx"


def write_bucket_graphs(graphs: Mapping[int, ir.Model], directory: Path) -> None:
    """Write every graph as ``bucket_K.onnx``; all of them point into one file of weights."""
    shared: dict[str, ir.ExternalTensor] = {}
    for count, model in graphs.items():
        path = directory / bucket_file(count)
        if not shared:
            ir.save(model, path, external_data=WEIGHTS, alignment=65536)
            stored = ir.load(path).graph.initializers
            shared = {
                name: value.const_value
                for name, value in stored.items()
                if isinstance(value.const_value, ir.ExternalTensor)
            }
        else:
            for name, tensor in shared.items():
                model.graph.initializers[name].const_value = tensor
            ir.save(model, path)
