"""A graph in ONNX Runtime on the CPU, for tools that look at it; bundles are run by ``OrtSession``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmmprune.compiler.backends.open_graph import failures, open_graph, reason
from lmmprune.compiler.bundle.interface import Graph
from lmmprune.errors import BundleError, require


def cpu_session(
    graph: Path | bytes,
    *,
    entries: Mapping[str, str] | None = None,
    configure: Callable[[Any, Any], None] = lambda ort, options: None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    disabled: Sequence[str] | None = None,
    expected: Graph | None = None,
) -> Any:
    """Load a graph.

    Args:
        graph: The ONNX file, or the serialized graph.
        entries: Session configuration by key.
        configure: Given the module ``onnxruntime`` and the session's options, to set more.
        providers: Where it runs, in order of preference.
        disabled: Optimizers that are switched off.
        expected: What the manifest says of its inputs and outputs; None: nothing does.

    Raises:
        MissingExtraError: onnxruntime isn't installed.
        BundleError: ONNX Runtime refuses it, or it isn't as expected.
    """
    ort = require("onnxruntime", "export")
    options = ort.SessionOptions()
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    configure(ort, options)
    return open_graph(ort, graph, options, providers=providers, disabled=disabled, expected=expected)


def run_all(session: Any, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return all outputs of a run by name.

    Raises:
        BundleError: The graph doesn't take these inputs, or fails on them.
    """
    names = [output.name for output in session.get_outputs()]
    ort = require("onnxruntime", "export")
    try:
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))
    except failures(ort) as error:
        raise BundleError(f"onnxruntime {ort.__version__} failed running a graph: {reason(error)}") from error
