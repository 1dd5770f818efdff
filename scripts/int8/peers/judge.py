"""Judge a tool's graphs: their error on held-out samples, what our lint says, and questions answered right."""

from __future__ import annotations

import collections
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.write_bundle import write_bundle
from lmmprune.compiler.data.questions import load_questions
from lmmprune.compiler.measure.evaluate import evaluate
from lmmprune.compiler.quantize.sensitivity import Answer, Samples, answers_of, relative_error
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.passes.int8.lint_qdq import lint_qdq
from peers.tools import PARTS, TINY, one_line


def open_session(graph: Path, threads: int | None = None, *, optimized: bool = True) -> Any:
    """Load a graph into ONNX Runtime on the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if threads:
        options.intra_op_num_threads = threads
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def judge(graph: Path, samples: Samples, exact: Sequence[Answer], scheme: str) -> dict[str, Any]:
    """Return error, findings of the lint, and products that stayed in floating point."""
    model = ir.load(graph)
    products = [n for n in model.graph if n.op_type in {"MatMul", "Gemm", "Conv"} and n.inputs[1] is not None]
    left = [n for n in products if n.inputs[1].is_initializer() and len(n.inputs[1].shape or ()) >= 2]
    row: dict[str, Any] = {
        "bytes": sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*")),
        "float_weights": len(left),
        "findings": dict(collections.Counter(finding.rule for finding in lint_qdq(model, scheme))),
    }
    for optimized in (True, False):
        try:
            row["error"] = relative_error(answers_of(open_session(graph, optimized=optimized), samples), exact)
            row["runs"] = optimized
            break
        except Exception as error:  # noqa: BLE001  # the runtime refuses another tool's graph: that is the result
            row["note"] = row.get("note", f"onnxruntime refuses it: {one_line(error)}")
    return row


def accuracy(work: Path, folder: Path, limit: int) -> float:
    """Put a tool's graphs into a copy of the bundle and ask it; return the share of right answers, 0..1."""
    bundle = Bundle.open(work / "float")
    with write_bundle(folder / "bundle") as writer:
        for name in bundle.manifest.files:
            if not name.startswith(PARTS):
                shutil.copy(bundle.file(name), writer.path / name)
        for part in PARTS:
            for file in folder.glob(f"{part}.onnx*"):
                shutil.copy(file, writer.path / file.name)
        writer.finish(bundle.manifest)
    return evaluate(Runtime(Bundle.open(folder / "bundle")), load_questions(TINY)[:limit]).overall.value
