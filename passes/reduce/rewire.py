"""The cut itself: put a shorter sequence in the place of a longer one and mend what depends on its length."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from lmmprune.lazy import is_lazy
from lmmprune.names import METHOD, PASS, SITE
from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.graph.shapes import static_shape

# What may be written a second time behind a cut: index arithmetic, nothing that reads a weight or costs anything.
_CHEAP = {
    *("Shape", "Squeeze", "Unsqueeze", "Reshape", "Concat", "Slice", "Gather", "Expand", "Range", "Cast", "Where"),
    *("Add", "Sub", "Mul", "Div", "Min", "Max", "Neg", "Clip", "CumSum", "Identity", "Transpose"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not"),
    *("Sin", "Cos", "Constant", "ConstantOfShape", "Size"),
}


def rewire(
    graph: ir.Graph,
    old: ir.Value,
    new: ir.Value,
    users: Sequence[tuple[ir.Node, int]],
    rebind: Mapping[ir.Value, ir.Value],
    *,
    beside: Sequence[tuple[ir.Value, Sequence[tuple[ir.Node, int]]]] = (),
    after: ir.Node,
    prefix: str,
) -> int:
    """Make everything behind a residual boundary read the shorter stream, and positions and masks of its length.

    Before: ``old -> users ...``, which also read ``cos(position_ids)``, a mask of ``Shape(input_ids)`` ...
    After: ``new -> users ...``, which read clones of these, computed from what ``rebind`` puts in the inputs' place.

    Args:
        graph: Changed in place.
        old: The stream at the boundary.
        new: What takes its place.
        users: Who read ``old`` before the selection was written.
        rebind: Sources with a token axis (ids, positions, the cache that tells the length) -> the same behind the cut.
        beside: Values of the shorter length that take the places of others, and who read those: streams cut alike.
        after: Clones are put behind this node.
        prefix: Of the clones' names.

    Returns:
        The number of nodes that were cloned.

    Raises:
        Refused: Something other than index arithmetic reaches across the boundary.
    """
    cut = [(new, users), *beside]
    shorter = {stream for stream, _ in cut}
    for stream, readers in cut:
        for node, index in readers:
            node.replace_input_with(index, stream)
    cloner = _Cloner(rebind, prefix, str(old.name))
    behind: dict[ir.Node, None] = {}
    work = [node for _, readers in cut for node, _ in readers]
    while work:
        node = work.pop()
        if node not in behind:
            behind[node] = None
            work.extend(user for output in node.outputs for user, _ in output.uses())
    for node in behind:
        for index, value in enumerate(node.inputs):
            if value is None or value in shorter or value.is_initializer() or value.producer() in behind:
                continue
            bound = cloner.bound(value)
            if bound is not value:
                node.replace_input_with(index, bound)
    graph.insert_after(after, cloner.nodes)
    return len(cloner.nodes)


class _Cloner:
    """Clones what depends on the rebound sources, each node once."""

    def __init__(self, rebind: Mapping[ir.Value, ir.Value], prefix: str, boundary: str) -> None:
        self._bound = dict(rebind)
        self._prefix = prefix
        self._boundary = boundary
        self.nodes: list[ir.Node] = []

    def bound(self, value: ir.Value) -> ir.Value:
        """Return the value as it is behind the cut: itself if it doesn't depend on a token axis."""
        if value in self._bound:
            return self._bound[value]
        node = value.producer()
        if node is None:
            self._bound[value] = value
            return value
        if all(entry is None or entry.is_initializer() for entry in node.inputs):
            # Made of weights alone: it carries no token.
            self._bound[value] = value
            return value
        if node.op_type not in _CHEAP or any(is_lazy(entry) for entry in node.inputs):
            raise Refused(
                f"'{value.name}' ({node.op_type}) carries tokens across the boundary '{self._boundary}' beside the"
                " residual stream: only positions, masks and lengths may"
            )
        inputs = [None if entry is None else self.bound(entry) for entry in node.inputs]
        if inputs == list(node.inputs):
            for output in node.outputs:
                self._bound[output] = output
            return value
        clone = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=self._name(node.name),
        )
        clone.metadata_props.update(node.metadata_props)
        # It is this cut's now, whoever wrote the original.
        for key in (PASS, METHOD):
            clone.metadata_props.pop(key, None)
        clone.metadata_props[SITE] = self._prefix
        for mine, theirs in zip(clone.outputs, node.outputs, strict=True):
            mine.name, mine.type = self._name(theirs.name), theirs.type
            self._bound[theirs] = mine
        self.nodes.append(clone)
        return self._bound[value]

    def _name(self, name: str | None) -> str:
        """Name a clone after the original, not after the clone of an earlier cut."""
        return f"{self._prefix}/{_EARLIER.sub('', str(name))}"


_EARLIER = re.compile(r"^(vision_layer|llm_input|llm_layer)_\d+/")


def relax_shapes(model: ir.Model) -> None:
    """Let constants that spell out token counts follow the tokens: needed before the first cut in a static graph.

    Before: ``Reshape(x [1,577,1024], [1,577,16,64])``, ``Slice(x [1,577,1024], 1, 577)``
    After: ``Reshape(x, [0,0,16,64])``, ``Slice(x, 1, INT64_MAX)``: the same values
    """
    for node in model.graph:
        if node.op_type == "Reshape" and node.inputs[1] is not None and node.inputs[1].const_value is not None:
            _relax_reshape(model, node)
        elif node.op_type == "Slice" and node.inputs[2] is not None and node.inputs[2].const_value is not None:
            _relax_slice(model, node)


def _relax_reshape(model: ir.Model, node: ir.Node) -> None:
    before, after = static_shape(_input(node, 0)), static_shape(node.outputs[0])
    lead = 0
    while lead < min(len(before), len(after)) and before[lead] == after[lead]:
        lead += 1
    tail = 0
    while tail < min(len(before), len(after)) - lead and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    middle = after[lead : len(after) - tail]
    target = [0] * lead + (list(middle) if len(middle) != 1 else [-1]) + list(after[len(after) - tail :])
    node.replace_input_with(1, _constant(model, f"{node.outputs[0].name}/relaxed_shape", target))
    node.attributes.pop("allowzero", None)


def _relax_slice(model: ir.Model, node: ir.Node) -> None:
    source = static_shape(_input(node, 0))
    ends = _input(node, 2).const_value
    axes = _input(node, 3).const_value if len(node.inputs) > 3 and node.inputs[3] is not None else None
    assert ends is not None
    steps = node.inputs[4].const_value if len(node.inputs) > 4 and node.inputs[4] is not None else None
    if steps is not None and (steps.numpy() < 0).any():
        # A slice that runs backwards stops at its end from above.
        return
    places = list(range(len(source))) if axes is None else [int(a) for a in axes.numpy()]
    relaxed = [
        int(np.iinfo(np.int64).max) if int(end) >= source[axis] else int(end)
        for end, axis in zip(ends.numpy(), places, strict=False)
    ]
    node.replace_input_with(2, _constant(model, f"{node.outputs[0].name}/relaxed_ends", relaxed))


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _constant(model: ir.Model, name: str, data: list[int]) -> ir.Value:
    array = np.array(data, np.int64)
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=ir.Tensor(array, name=name),
    )
    model.graph.register_initializer(value)
    return value
