"""The tools and their settings, one row each; imports nothing that another tool's environment may lack."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("vision", "decoder")
TINY = "tiny-llava"

Done = Callable[[str, str], None]
"""Takes a part that is through and what is to be said of it."""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One row of the tables.

    Attributes:
        library: Who quantizes; also names the environment where it doesn't run in ours.
        options: Behind the library in the row's name.
        scheme: The one whose rules the lint applies, and what ours is told.
        smooth: Whether ours smooths.
        products_only: Whether onnxruntime is told to take only products with weights.
    """

    library: str
    options: str = ""
    scheme: str
    smooth: bool = False
    products_only: bool = False

    @property
    def name(self) -> str:
        """The row's name."""
        return f"{self.library} {self.options}".rstrip()

    @property
    def dynamic(self) -> bool:
        """Whether ranges are those of each run, which needs no calibration."""
        return "dynamic" in self.scheme


_ALL = (
    Tool(library="lmmprune", options="u8s8, SmoothQuant", scheme="u8s8", smooth=True),
    Tool(library="lmmprune", options="u8s8", scheme="u8s8"),
    Tool(library="lmmprune", options="dynamic", scheme="u8s8-dynamic"),
    Tool(library="onnxruntime", options="static", scheme="u8s8"),
    Tool(library="onnxruntime", options="static, weights' products only", scheme="u8s8", products_only=True),
    Tool(library="onnxruntime", options="dynamic", scheme="u8s8-dynamic"),
    Tool(library="onnxruntime", options="dynamic, weights' products only", scheme="u8s8-dynamic", products_only=True),
    Tool(library="ModelOpt", scheme="s8s8"),
    Tool(library="neural-compressor", scheme="u8s8"),
)
TOOLS = {tool.name: tool for tool in _ALL}


def setup_of(work: Path) -> dict[str, Any]:
    """Return what is quantized: model, weights, layers, samples, ratio, and whether it is large."""
    setup: dict[str, Any] = json.loads((work / "setup.json").read_text(encoding="utf-8"))
    return setup


def feeds(work: Path, part: str) -> Iterator[dict[str, Any]]:
    """Yield the recorded inputs of a graph, run by run."""
    for file in sorted((work / "feeds").glob(f"{part}.*.npz")):
        with np.load(file) as stored:
            yield dict(stored)


def one_line(error: BaseException) -> str:
    """Return an exception of another library in one line."""
    text = " ".join(str(error).split()) or "no message"
    # ONNX Runtime puts the node with all its inputs before the reason.
    return f"{type(error).__name__}: {text.rpartition(', Error ')[2][:200]}"
