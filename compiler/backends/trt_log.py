"""TensorRT's messages: kept for our own errors instead of being printed."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

# Seen in TensorRT-RTX 1.7.1, or read in TensorRT's headers: words of its message -> what they mean for the user.
_CAUSES = (
    (
        r"cudaError 35|driver version|initialization failure",
        "the NVIDIA driver is missing or too old for this TensorRT",
    ),
    (r"plug-?in", "it holds a plug-in that isn't registered here (an operator that TensorRT has no layer for)"),
    (r"compute capability|different (device|gpu)|incompatible (device|platform)", "it is for another GPU"),
    (r"serialization|magic|version (tag|mismatch)", "another version of TensorRT built it, or it is no engine"),
    (r"out of memory|outofmemory", "the GPU is out of memory: close what else uses it"),
)


def make_log(trt: ModuleType, *, say: Callable[[str], None] | None = None) -> Any:
    """Return a logger that keeps errors; it has ``errors()``, one per line, and ``clear()``.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        say: Called with every message down to information; None: none.
    """

    class Log(trt.ILogger):  # type: ignore[name-defined, misc]  # the base class is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self._lines.append(message)
            if say is not None and severity != trt.ILogger.VERBOSE:
                say(message)

        def errors(self) -> str:
            return "\n".join(self._lines) or "no reason given"

        def clear(self) -> None:
            self._lines.clear()

    return Log()


def one_line(text: str) -> str:
    """Return the lines of a message that say something, without the libraries' source positions."""
    lines = (line.strip() for line in text.splitlines())
    # Without a driver every complaint is followed by cudaError 35, which has nothing to do with it.
    useful = [line for line in lines if line and "cudaError 35" not in line and not line.startswith("Invalid Node")]
    return " ".join(dict.fromkeys(useful))[:600] or text.strip()


def explain(text: str) -> str:
    """Return TensorRT's first reason in one line, with what it means where that is known."""
    reason = one_line(text.splitlines()[0] if text else "no reason given")
    cause = next((cause for words, cause in _CAUSES if re.search(words, reason, re.IGNORECASE)), None)
    return f"{cause} ({reason})" if cause else reason
