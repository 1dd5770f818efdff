"""A graph in ONNX Runtime on the CPU, for tools that look at it; bundles are run by ``OrtSession``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmmprune.errors import require

_ERRORS = 3  # its warnings are about its own optimizer


def cpu_session(
    graph: Path | bytes,
    *,
    entries: Mapping[str, str] | None = None,
    configure: Callable[[Any, Any], None] = lambda ort, options: None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    disabled: Sequence[str] | None = None,
) -> Any:
    """Load a graph.

    Args:
        graph: The ONNX file, or the serialized graph.
        entries: Session configuration by key.
        configure: Given the module ``onnxruntime`` and the session's options, to set more.
        providers: Where it runs, in order of preference.
        disabled: Optimizers that are switched off.

    Raises:
        MissingExtraError: onnxruntime isn't installed.
    """
    ort = require("onnxruntime", "export")
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    configure(ort, options)
    source = graph if isinstance(graph, bytes) else str(graph)
    return ort.InferenceSession(source, options, providers=list(providers), disabled_optimizers=disabled)


def run_all(session: Any, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return all outputs of a run by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))
