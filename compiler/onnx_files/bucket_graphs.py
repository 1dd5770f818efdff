"""Graphs for several token counts behind one encoder: small ones that share one file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

WEIGHTS = "buckets.data"


def bucket_name(tokens: int | str) -> str:
    """Return the component that makes so many tokens."""
    return f"bucket_{tokens}".rstrip("_")


def bucket_file(tokens: int) -> str:
    """Return the name of the graph that makes so many tokens."""
    return f"{bucket_name(tokens)}.onnx"


def write_bucket_graphs(graphs: Mapping[int, ir.Model], directory: Path) -> None:
    """Write every graph as ``bucket_K.onnx``; all of them point into one file of weights.

    What differs between them lies in the graphs: ranges of activations, and counts.
    """
    shared: dict[str, ir.ExternalTensor] = {}
    for count, model in sorted(graphs.items(), reverse=True):
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
                own = model.graph.initializers.get(name)
                if own is not None and own.const_value is not None and _equal(own.const_value, tensor):
                    own.const_value = tensor
            ir.save(model, path)


def _equal(own: ir.TensorProtocol, theirs: ir.TensorProtocol) -> bool:
    same = (own.dtype, own.shape) == (theirs.dtype, theirs.shape)
    return same and np.array_equal(own.numpy(), theirs.numpy())
