"""Heads for several token counts behind one encoder: small graphs that share one file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from lmmprune.compiler.bundle.manifest import Graph
from lmmprune.compiler.onnx_files.signature import signature

WEIGHTS = "heads.data"


def write_bucket_graphs(heads: Mapping[int, ir.Model], directory: Path) -> dict[int, Graph]:
    """Write every head as ``head_K.onnx``; all of them point into one file of weights.

    Returns:
        Token count -> file with its signature.
    """
    found: dict[int, Graph] = {}
    shared: dict[str, ir.ExternalTensor] = {}
    for count, model in heads.items():
        path = directory / f"head_{count}.onnx"
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
        found[count] = signature(path.name, model)
    return found
