"""The one place where ONNX Runtime is given a graph: whatever it raises becomes a line with the file and what to do."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmmprune.compiler.bundle.hold_signature import Found, hold_signature
from lmmprune.compiler.bundle.interface import Graph
from lmmprune.errors import BundleError, one_line

_PLACE = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?|/\S*\.(cc|h):\d+ |This is an invalid model. "
)
_SILENT = 4
"""Log severity: its warnings are about its own optimizer, and its errors are raised, too, and become a line of ours."""
_TYPES = {"float": "float32", "double": "float64"}
"""ONNX Runtime's names of types, where NumPy has another."""


def open_graph(
    ort: Any,
    source: Path | bytes,
    options: Any,
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    disabled: Sequence[str] | None = None,
    expected: Graph | None = None,
    name: str = "a graph",
) -> Any:
    """Load a graph.

    Args:
        ort: The module ``onnxruntime``.
        source: The ONNX file, or the serialized graph.
        options: Of the session; what they say of its log is replaced.
        providers: Where it runs, in order of preference.
        disabled: Optimizers that are switched off.
        expected: What the manifest says of its inputs and outputs; None: nothing does.
        name: What a serialized graph is called in messages.

    Raises:
        BundleError: ONNX Runtime refuses it, or its inputs or outputs aren't those that are expected.
    """
    options.log_severity_level = _SILENT
    file = Path(name) if isinstance(source, bytes) else source
    given = source if isinstance(source, bytes) else str(source)
    try:
        session = ort.InferenceSession(given, options, providers=list(providers), disabled_optimizers=disabled)
    except failures(ort) as error:
        raise BundleError(
            f"onnxruntime {ort.__version__} can't load '{file}': {reason(error)}: export again, or"
            " install the onnxruntime that it was exported with"
        ) from error
    if expected is not None:
        hold_signature(file, expected, _found(session.get_inputs()), _found(session.get_outputs()))
    return session


@functools.cache
def failures(ort: Any) -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises; its errors have no common base."""
    state = vars(ort.capi.onnxruntime_pybind11_state).values()
    # ValueError: its Python side refuses inputs that the graph lacks.
    return (RuntimeError, ValueError, *(one for one in state if isinstance(one, type) and issubclass(one, Exception)))


def reason(error: BaseException) -> str:
    """Return the first line of what ONNX Runtime says, without its names of codes, functions and files."""
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return one_line(_PLACE.sub("", first), most=160)


def _found(values: Sequence[Any]) -> Found:
    return {value.name: (_type(value.type), value.shape) for value in values}


def _type(text: str) -> str:
    """Return the name of a type such as ``tensor(float)``."""
    inner = text.removeprefix("tensor(").removesuffix(")")
    return _TYPES.get(inner, inner)
