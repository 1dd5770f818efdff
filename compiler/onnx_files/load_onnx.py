"""Open an ONNX file that may be anything."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from lmmprune.compiler.bundle.hold_signature import as_found, hold_signature
from lmmprune.compiler.bundle.manifest import Graph
from lmmprune.compiler.onnx_files.signature import signature
from lmmprune.errors import InputError, said
from lmmprune.limits import shortened

if TYPE_CHECKING:
    import onnx_ir as ir


def load_onnx(path: Path, *, weights: bool = True, expected: Graph | None = None) -> ir.Model:
    """Load a graph, its nodes in an order in which they can be computed; weights beside the file are not read.

    Args:
        path: The file, or a link to it.
        weights: Whether the files with its weights must be there, and complete.
        expected: What a bundle's manifest says of its inputs and outputs; None: nothing does.

    Raises:
        InputError: It can't be read as ONNX, or isn't a graph that could be computed.
        BundleError: Its inputs or outputs aren't those that are expected.
    """
    import onnx_ir as ir

    from lmmprune.compiler.onnx_files.linked_data import link_data

    # Its reader logs what is looked for below.
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        model = ir.load(path)
    except Exception as error:  # whatever the readers stumble over, it is the file
        raise InputError(f"'{path}' isn't an ONNX file that can be read ({said(error)}): export it again") from error
    finally:
        logger.setLevel(level)
    link_data(model, path, check=weights)
    for graph in model.graphs():
        _check_tensors(path, graph)
        _check_values(path, graph)
    if not all(_in_order(graph) for graph in model.graphs()):
        try:
            model.graph.sort()
        except ValueError as error:
            raise InputError(
                f"the nodes of '{path}' make a circle, each waiting for another's output: it isn't a graph that can be"
                " computed; export it again"
            ) from error
    if expected is not None:
        found = _signature(path, model)
        hold_signature(path, expected, as_found(found.inputs), as_found(found.outputs))
    return model


def _signature(path: Path, model: ir.Model) -> Graph:
    import onnx_ir as ir

    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is None or value.dtype in (None, ir.DataType.UNDEFINED):
            raise InputError(f"'{path}' doesn't say the type or the shape of '{value.name}': export it again")
    return signature(path.name, model)


def _check_tensors(path: Path, graph: ir.Graph) -> None:
    """Refuse weights inside of the file that aren't as long as they say, or of no type."""
    import onnx_ir as ir

    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None or isinstance(tensor, ir.ExternalTensor):
            continue
        try:
            # Looks at the bytes in the file, without a copy.
            tensor.numpy()
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the weight '{name}' {tensor.shape} of '{path}' can't be read ({said(error)}): the file is damaged;"
                " export it again"
            ) from error


def _check_values(path: Path, graph: ir.Graph) -> None:
    """Refuse values that nothing makes."""
    own = {value for node in graph for value in node.outputs}
    for output in graph.outputs:
        if not (output in own or output.producer() or output.is_initializer() or output.is_graph_input()):
            raise InputError(
                f"nothing in '{path}' makes its output {shortened(output.name)}: the file is damaged; export it again"
            )
    for node in graph:
        for value in node.inputs:
            if value is None or value in own or value.producer() is not None:
                continue
            if value.is_initializer() or value.is_graph_input() or value.const_value is not None:
                continue
            raise InputError(
                f"node '{node.name}' ({node.op_type}) of '{path}' reads '{value.name}', which no input, weight or node"
                " of the graph is: the file is damaged or a part of a graph; export it again"
            )


def _in_order(graph: ir.Graph) -> bool:
    """Return whether every node stands behind those whose outputs it reads."""
    own = {value for node in graph for value in node.outputs}
    seen: set[ir.Value] = set()
    for node in graph:
        if any(value in own and value not in seen for value in node.inputs if value is not None):
            return False
        seen.update(node.outputs)
    return True
