"""Cut a graph at its layers' borders into graphs that are run one after the other, each with its weights alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.lazy import is_lazy


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a graph between two borders.

    Attributes:
        model: Its graph; weights are inputs.
        weights: Those inputs, and the initializers of the whole graph that they are.
        inputs: The other values that it reads: inputs of the whole graph, or what earlier segments made.
        outputs: What later segments read of it, and the outputs of the whole graph that it makes.
        made: Every value that it makes.
        done_with: Of ``inputs``, those that no later segment reads.
    """

    model: ir.Model
    weights: Mapping[str, ir.Value]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    made: frozenset[str]
    done_with: tuple[str, ...]


def split(model: ir.Model, borders: Sequence[str]) -> list[Segment]:
    """Cut a graph behind the given values.

    A node belongs to the first border that it leads to, and to the last segment if it leads to none.

    Args:
        model: A graph whose large weights are lazy; it stays as it is.
        borders: Names of values, in the order of the data.
    """
    nodes = list(model.graph)
    makers = {output.name: node for node in nodes for output in node.outputs}
    number: dict[ir.Node, int] = {}
    for index, name in enumerate(borders):
        todo = [makers[name]]
        while todo:
            node = todo.pop()
            if node in number:
                continue
            number[node] = index
            todo.extend(makers[v.name] for v in node.inputs if v is not None and v.name in makers)
    groups: list[list[ir.Node]] = [[] for _ in range(len(borders) + 1)]
    for node in nodes:
        groups[number.get(node, len(borders))].append(node)
    groups = [group for group in groups if group]
    reads = [_read(group) for group in groups]
    wanted = {str(output.name) for output in model.graph.outputs}
    segments = []
    for index, group in enumerate(groups):
        made = {str(output.name) for node in group for output in node.outputs}
        later = set().union(*reads[index + 1 :]) if index + 1 < len(reads) else set()
        inputs = tuple(sorted(reads[index] - made))
        outputs = tuple(sorted(made & (later | wanted)))
        graph, weights = _extract(model, inputs, outputs)
        segments.append(
            Segment(
                model=graph,
                weights=weights,
                inputs=inputs,
                outputs=outputs,
                made=frozenset(made),
                done_with=tuple(name for name in inputs if name not in later),
            )
        )
    return segments


def _read(nodes: Iterable[ir.Node]) -> set[str]:
    """Return the names of what nodes read that isn't an initializer."""
    return {
        str(value.name) for node in nodes for value in node.inputs if value is not None and not value.is_initializer()
    }


def _extract(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[ir.Model, dict[str, ir.Value]]:
    graph = ir.convenience.extract(model.graph, list(inputs), list(outputs))
    weights = {}
    for name, value in list(graph.initializers.items()):
        if is_lazy(value):
            weights[name] = model.graph.initializers[name]
            del graph.initializers[name]
            value.const_value = None
            graph.inputs.append(value)
    return ir.Model(graph, ir_version=model.ir_version), weights
