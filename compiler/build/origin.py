"""Where a node that a compiler complains of comes from: its place in the model, and the pass of ours that wrote it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lmmprune.compiler.build.read_graph import read_graph
from lmmprune.names import METHOD, PASS, REPLACES, SITE

if TYPE_CHECKING:
    import onnx_ir as ir

# A module with weights: what people call a place in a model.
_WEIGHT = re.compile(r"^(.*\.(?:layers|blocks|resblocks|h)\.\d+\.[\w.]*?)\.(?:weight|bias)\b")
# Seen in TensorRT-RTX 1.7.1: "expand [profile 1].1_iota" is made from the value "expand".
_MYELIN = re.compile(r"([^\s\[\]{}()'\",;]+) \[profile \d+\]")
_FAR = 200  # nodes to look at before giving up: more than a layer has


def describe(graph: Path, node: str) -> str:
    """Return what is known of a node, to be put behind its name: ``', near ..., written by ...'``; may be empty.

    Args:
        graph: The ONNX file, which the compiler's parser could read.
        node: Name of a node.
    """
    found = _nodes(graph).get(node)
    if found is None:
        return ""
    said = []
    if place := _place(found):
        said.append(f"near '{place}'")
    if maker := written_by(found):
        said.append(f"written by {maker}")
    return "".join(f", {text}" for text in said)


def find_node(graph: Path, message: str) -> str | None:
    """Return the first node of a graph that a message names, by its name or its output's; None: it names none."""
    by_name = _nodes(graph)
    # Builders put names into brackets and join those of fused nodes: {ForeignNode[a...b]}, [a + b].
    words = re.split(r"\.{3}|[\s\[\]{}()'\",:;+]+", message)
    if named := next((word for word in words if word in by_name), None):
        return named
    by_output = {value.name: name for name, node in by_name.items() for value in node.outputs if value.name}
    # A value may be called "shape" or "add": such words mean it only where Myelin's mark follows.
    values = [*_MYELIN.findall(message), *(word for word in words if not word.isalpha())]
    return next((by_output[word] for word in values if word in by_output), None)


def written_by(node: ir.Node) -> str | None:
    """Return which pass wrote a node, and for what, as its metadata says; None if it came with the model."""
    about = node.metadata_props
    if PASS not in about:
        return None
    method, site = about.get(METHOD), about.get(SITE)
    where = " at ".join(filter(None, (method, site)))
    instead = f" in the place of '{about[REPLACES]}'" if REPLACES in about else ""
    return f"{about[PASS]}{f' ({where})' if where else ''}{instead}"


def _nodes(graph: Path) -> Mapping[str, ir.Node]:
    # Without onnx-ir the node's name has to do.
    model = read_graph(graph)
    return {} if model is None else {node.name: node for node in model.graph if node.name}


def _place(node: ir.Node) -> str | None:
    """Return the module whose weights are nearest before a node."""
    waiting, seen = [node], {node}
    for here in waiting:
        for value in here.inputs:
            if value is None:
                continue
            if match := _WEIGHT.match(value.name or ""):
                return match[1]
            before = value.producer()
            if before is not None and before not in seen and len(seen) < _FAR:
                seen.add(before)
                waiting.append(before)
    return None
