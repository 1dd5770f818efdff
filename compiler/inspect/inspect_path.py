"""What the passes see in a bundle or in an ONNX file, and which engines a bundle has."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lmmprune.compiler.bundle.bundle import ENGINES, Bundle
from lmmprune.compiler.bundle.engines import read_records
from lmmprune.compiler.inspect.inspect_graph import inspect_graph
from lmmprune.compiler.targets import targets
from lmmprune.errors import InputError


def inspect_path(path: Path, *, target: str | None = None, image_size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Inspect the graphs of a bundle, or one ONNX file.

    Args:
        path: A bundle's directory, or a file.
        target: Whose rules Q/DQ pairs are checked against; None: the bundle's, or what the file looks like.
        image_size: Height and width in pixels, where another tool's tower leaves them open.

    Returns:
        ``path``; ``graphs``, as ``inspect_graph`` describes each; ``engines``: the records of a bundle's engines.

    Raises:
        InputError: There is nothing.
        LmmpruneError: It can't be read.
    """
    scheme: str | None = targets.resolve(target).int8 if target else None
    if path.is_file():
        graphs = [inspect_graph(path, scheme=scheme, image_size=image_size)]
        return {"path": str(path), "graphs": graphs, "engines": []}
    if not path.is_dir():
        raise InputError(f"'{path}' doesn't exist: give a bundle or an ONNX file")
    bundle = Bundle.open(path)
    precision = bundle.manifest.precision
    scheme = scheme or precision.int8
    graphs = [
        # Weights of four bits have rules of their own, which inspect_graph finds.
        inspect_graph(
            bundle.file(graph.file), scheme=None if precision.int4 and name == "decoder" else scheme, expected=graph
        )
        for name, graph in bundle.manifest.graphs.items()
    ]
    return {"path": str(path), "graphs": graphs, "engines": _engines(path)}


def _engines(path: Path) -> list[dict[str, Any]]:
    """Return the records of every engine of a bundle."""
    folders = sorted(folder for folder in (path / ENGINES).glob("*") if folder.is_dir())
    return [dataclasses.asdict(record) for folder in folders for record in read_records(folder).values()]
