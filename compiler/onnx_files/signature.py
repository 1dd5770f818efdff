"""What a graph takes and gives, as the manifest states it."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from lmmprune.compiler.bundle.manifest import Graph, Tensor


def signature(file: str, model: ir.Model) -> Graph:
    """Return the inputs and outputs of a graph that is stored in ``file``."""

    def tensors(values: Sequence[ir.Value]) -> tuple[Tensor, ...]:
        rows = []
        for value in values:
            assert value.shape is not None
            assert value.dtype is not None
            shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
            rows.append(Tensor(name=str(value.name), dtype=str(value.dtype.numpy()), shape=shape))
        return tuple(rows)

    return Graph(file=file, inputs=tensors(model.graph.inputs), outputs=tensors(model.graph.outputs))
