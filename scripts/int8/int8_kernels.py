"""Which INT8 form of a product is fastest on this CPU, by the size of its weight and the number of tokens.

    python scripts/int8/int8_kernels.py -o docs/results/int8_kernels

One MatMul per size, random weights, in ONNX Runtime: float32, static U8 x S8 (Q/DQ), dynamic U8 x S8, and S8 weights
only. All forms of a size are timed interleaved in one process.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from lmmprune.compiler.backends.onnxruntime import session_options
from lmmprune.compiler.targets import machine
from lmmprune.passes.int8.insert_qdq import InsertQdq

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts/, where results.py lies

import results

SIZES = ((128, 384), (1024, 1024), (1024, 4096), (4096, 4096), (4096, 11008), (11008, 4096), (4096, 32064))
TOKENS = (1, 124, 348, 636)
FORMS = {"float32": None, "static": "u8s8", "dynamic": "u8s8-dynamic", "weights only": "s8-weights"}


def product(rows: int, columns: int) -> ir.Model:
    """Return ``x [1,T,rows] -> logits [1,T,columns]``, one MatMul."""
    weight = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    w = ir.Value(name="w", const_value=ir.Tensor(weight, name="w"))
    w.shape, w.type = ir.Shape(weight.shape), ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", shape=ir.Shape([1, "T", rows]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("MatMul", [x, w], name="product")
    y = node.outputs[0]
    y.name, y.shape, y.type = "logits", ir.Shape([1, "T", columns]), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [y], nodes=[node], initializers=[w], opset_imports={"": 21}, name="product")
    return ir.Model(graph, ir_version=10)


def load(model: ir.Model, threads: int) -> Any:
    """Load a graph as ``OrtSession`` does."""
    options = session_options(ort, threads)
    data = ir.serde.serialize_model(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def forms(rows: int, columns: int, threads: int) -> dict[str, Any]:
    """Return a session for every form of one size."""
    sessions = {}
    for name, scheme in FORMS.items():
        model = product(rows, columns)
        if scheme:
            InsertQdq(scheme=scheme, ranges={"x": (-4.0, 4.0)})(model)
        sessions[name] = load(model, threads)
    return sessions


def measure(sessions: dict[str, Any], tokens: int, rows: int, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of every form; an untimed run settles the threads before each."""
    x = np.random.default_rng(1).standard_normal((1, tokens, rows)).astype(np.float32)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(-1, rounds):
        for name, session in sessions.items():
            session.run(None, {"x": x})
            start = time.perf_counter()
            session.run(None, {"x": x})
            if number >= 0:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(row) for name, row in times.items()}


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("docs/results/int8_kernels"), show_default=True
)
def main(rounds: int, threads: int, output: Path) -> None:
    """Write OUTPUT.json and OUTPUT.md."""
    found = []
    lines = ["| weight | tokens | float32, ms | static | dynamic | weights only |", "|---|---|---|---|---|---|"]
    for rows, columns in SIZES:
        sessions = forms(rows, columns, threads)
        for tokens in TOKENS:
            times = measure(sessions, tokens, rows, rounds)
            found.append({"rows": rows, "columns": columns, "tokens": tokens, "ms": times})
            ratios = " | ".join(f"{times['float32'] / times[name]:.2f}x" for name in list(FORMS)[1:])
            lines.append(f"| {rows} x {columns} | {tokens} | {times['float32']:.3f} | {ratios} |")
    facts = machine.detect_machine()
    lines += ["", f"Times as fast as float32; {threads} threads, medians of {rounds} rounds, {facts.processor},"]
    lines.append(f"onnxruntime {ort.__version__}.")
    text = "\n".join(lines) + "\n"
    results.write(output, found, text)
    click.echo(text)


if __name__ == "__main__":
    main()
