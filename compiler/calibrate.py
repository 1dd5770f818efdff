"""Measure the range of activations on real inputs: one minimum and one maximum per tensor, nothing else is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmmprune.errors import require
from lmmprune.passes.insert_qdq import Range

Feeds = Mapping[str, np.ndarray[Any, Any]]


def calibrate(
    graph: Path, names: Sequence[str], feeds: Iterable[Feeds], *, done: Callable[[], None]
) -> dict[str, Range]:
    """Run a float32 graph and return ``(min, max)`` of some of its values over all inputs.

    Args:
        graph: ONNX file; its external data stays where it is.
        names: Values to watch.
        feeds: Inputs, one mapping per run.
        done: Called after each run.
    """
    ort = require("onnxruntime", "export")
    watched = graph.with_suffix(".calibrate.onnx")
    _write_watched(graph, names, watched)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(watched), options, providers=["CPUExecutionProvider"])
    low = np.full(len(names), np.inf)
    high = np.full(len(names), -np.inf)
    outputs = [f"{name}/{bound}" for bound in ("min", "max") for name in names]
    for feed in feeds:
        found = np.array(session.run(outputs, dict(feed)), np.float64)
        # np.minimum, unlike min(), lets NaN through: insert_qdq refuses it by name.
        low, high = np.minimum(low, found[: len(names)]), np.maximum(high, found[len(names) :])
        done()
    watched.unlink()
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(names)}


def _write_watched(graph: Path, names: Sequence[str], destination: Path) -> None:
    """Write the graph with ReduceMin and ReduceMax of every watched value as outputs."""
    import onnx_ir as ir

    model = ir.load(graph)
    values = {value.name: value for value in model.graph.inputs}
    values.update({output.name: output for node in model.graph for output in node.outputs})
    for name in names:
        for op, bound in (("ReduceMin", "min"), ("ReduceMax", "max")):
            node = ir.node(op, [values[name]], {"keepdims": 0}, name=f"{name}/{bound}")
            node.outputs[0].name = f"{name}/{bound}"
            node.outputs[0].shape, node.outputs[0].type = ir.Shape([]), ir.TensorType(ir.DataType.FLOAT)
            model.graph.append(node)
            model.graph.outputs.append(node.outputs[0])
    ir.save(model, destination)
