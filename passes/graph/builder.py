"""A tape on which new nodes are written, and placed into a graph at one spot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from lmmprune.names import PASS

# Marks the nodes that must stay in floating point: a quantized score flips near-tie picks.
SCORE = "lmmprune.score"


class Builder:
    """Writes nodes whose names begin with a prefix, so that profilers and error messages tell whose they are.

    Names are for people; programs read the nodes' metadata (see ``lmmprune.names``), of which ``about`` is a part.

    Constants become initializers; Python numbers and arrays may stand wherever a value may.
    """

    def __init__(self, prefix: str, *, score: bool = True, about: Mapping[str, str] = MappingProxyType({})) -> None:
        self._tape = tape.Tape()
        self._prefix = prefix
        self._score = score
        self._about = about
        self._count = 0

    def aside(self, part: str) -> Builder:
        """Return a tape for nodes of the same origin that stand elsewhere in the graph and move tokens, no scores."""
        return Builder(f"{self._prefix}/{part}", score=False, about=self._about)

    def op(self, op_type: str, *inputs: ir.Value | Any, **attributes: Any) -> ir.Value:
        """Append a node with one output."""
        return self.ops(op_type, 1, *inputs, **attributes)[0]

    def stream(self, op_type: str, *inputs: ir.Value | Any, **attributes: Any) -> ir.Value:
        """Append a node with one output that moves tokens instead of scoring them: it takes the graph's own type."""
        value = self.op(op_type, *inputs, **attributes)
        node = value.producer()
        assert node is not None
        node.metadata_props.pop(SCORE, None)
        return value

    def ops(
        self, op_type: str, outputs: int, *inputs: ir.Value | Any, domain: Any = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        """Append a node with several outputs."""
        values = [self._value(entry) for entry in inputs]
        name = self._name(op_type)
        made = self._tape.op_multi_out(op_type, values, attributes, num_outputs=outputs, domain=domain, name=name)
        for index, value in enumerate(made):
            value.name = f"{name}_{index}" if outputs > 1 else f"{name}_out"
        node = made[0].producer()
        assert node is not None
        node.metadata_props.update(self._about)
        if self._score:
            node.metadata_props[SCORE] = "1"
        return made

    def again(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> Sequence[ir.Value]:
        """Append a node like another, on other inputs: it takes the graph's own type, and is no score itself."""
        name = self._name(node.op_type)
        made = self._tape.op_multi_out(
            node.op_type, inputs, node.attributes, num_outputs=len(node.outputs), domain=node.domain, name=name
        )
        for index, (value, like) in enumerate(zip(made, node.outputs, strict=True)):
            value.name, value.type = f"{name}_{index}", like.type
        copy = made[0].producer()
        assert copy is not None
        # It is this tape's now, whoever wrote the original.
        copy.metadata_props.update({key: text for key, text in node.metadata_props.items() if key != PASS})
        copy.metadata_props.update(self._about)
        return made

    def constant(self, data: Any, dtype: Any = None) -> ir.Value:
        """Append an initializer; integers are int64 and floats float32 unless a dtype is given."""
        array = np.asarray(data, dtype)
        if dtype is None and array.dtype == np.float64:
            array = array.astype(np.float32)
        name = self._name("constant")
        value = self._tape.initializer(ir.Tensor(array, name=name), name=name)
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
        return value

    def insert_after(self, graph: ir.Graph, node: ir.Node | None) -> ir.Node:
        """Put what was written behind a node and return the last node written."""
        assert node is not None
        self._register(graph)
        graph.insert_after(node, self._tape.nodes)
        return self._tape.nodes[-1]

    def insert_before(self, graph: ir.Graph, node: ir.Node) -> None:
        """Put what was written in front of a node."""
        self._register(graph)
        graph.insert_before(node, self._tape.nodes)

    def prepend_to(self, graph: ir.Graph) -> None:
        """Put what was written, constants alone or nodes too, at the beginning of the graph."""
        self._register(graph)
        graph.insert_before(next(iter(graph)), self._tape.nodes)

    def append_to(self, graph: ir.Graph) -> None:
        """Put what was written at the end of the graph."""
        self._register(graph)
        graph.extend(self._tape.nodes)

    def _register(self, graph: ir.Graph) -> None:
        for value in self._tape.initializers:
            graph.register_initializer(value)

    def _value(self, entry: Any) -> ir.Value | None:
        return entry if isinstance(entry, ir.Value) or entry is None else self.constant(entry)

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{self._prefix}/{what}_{self._count}"
