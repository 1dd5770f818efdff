"""Look into an ONNX file where there is onnx-ir: the extras of the builders bring it, the base install doesn't."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lmmprune.compiler.bundle.hold_signature import Found, hold_signature
from lmmprune.compiler.bundle.manifest import Graph
from lmmprune.errors import BundleError, said

if TYPE_CHECKING:
    import onnx_ir as ir


def read_graph(path: Path, expected: Graph | None = None) -> ir.Model | None:
    """Return a graph without its weights; None where there is no onnx-ir.

    Args:
        path: The file.
        expected: What the manifest says of its inputs and outputs; None: nothing does.

    Raises:
        BundleError: It can't be read as ONNX, or isn't as expected.
    """
    if importlib.util.find_spec("onnx_ir") is None:
        return None
    import onnx_ir as ir

    try:
        model = ir.load(path)
    except Exception as error:  # whatever the readers stumble over, it is the file
        raise BundleError(f"'{path}' isn't an ONNX file that can be read ({said(error)}): export again") from error
    if expected is not None:
        hold_signature(path, expected, _found(model.graph.inputs), _found(model.graph.outputs))
    return model


def _found(values: Iterable[ir.Value]) -> Found:
    return {
        str(value.name): (
            "unknown" if value.dtype is None else str(value.dtype.numpy()),
            [dim if isinstance(dim, int) else dim.value for dim in value.shape or ()],
        )
        for value in values
    }
