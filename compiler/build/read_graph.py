"""Look into an ONNX file where there is onnx-ir: the extras of the builders bring it, the base install doesn't."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.bundle.manifest import Graph
from lmmprune.errors import BundleError, InputError

if TYPE_CHECKING:
    import onnx_ir as ir


def read_graph(path: Path, expected: Graph | None = None, *, weights: bool = False) -> ir.Model | None:
    """Return a graph, its weights unread; None where there is no onnx-ir.

    Args:
        path: The file.
        expected: What the manifest says of its inputs and outputs; None: nothing does.
        weights: Whether the files with its weights must be there, and complete.

    Raises:
        BundleError: It can't be read as ONNX, isn't a graph that could be computed, or isn't as expected.
    """
    if importlib.util.find_spec("onnx_ir") is None:
        return None
    from lmmprune.compiler.onnx_files.load_onnx import load_onnx

    try:
        return load_onnx(path, weights=weights, expected=expected)
    except InputError as error:
        raise BundleError(str(error)) from error


def check_graphs(bundle: Bundle) -> None:
    """Open every graph of a bundle whose files are taken elsewhere, where nobody could say what is wrong with them.

    Without onnx-ir nothing is opened; checksums were compared all the same.

    Raises:
        BundleError: One is damaged, isn't what the manifest says, or lacks weights.
    """
    for graph in bundle.manifest.graphs.values():
        read_graph(bundle.file(graph.file), graph, weights=True)
