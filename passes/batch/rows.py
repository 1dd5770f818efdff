"""A value that has one entry per row of the batch, and what the rules need to write nodes on such values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from lmmprune.names import METHOD, SITE
from lmmprune.passes.graph.builder import SCORE, Builder
from lmmprune.passes.graph.refusals import Refused

Dims = Sequence[Any]
"""Sizes of a value: numbers, or symbols for those that aren't."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A value of the wide graph.

    Attributes:
        value: Holds every row.
        own: Whether the rows stand in the first axis that one row has itself, of size 1 there: ``[1,T,C]`` became
            ``[B,T,C]``. Else they stand in front of all axes: ``[T,C]`` became ``[B,T,C]``.
        dims: The sizes that one row has.
    """

    value: ir.Value
    own: bool
    dims: tuple[Any, ...]

    @property
    def can_own(self) -> bool:
        """Whether the rows may stand in the first axis."""
        return self.own or (len(self.dims) > 0 and self.dims[0] == 1)


class Widening:
    """One run of ``WidenBatch``: which values differ by row, and the nodes that bring them into another form.

    Attributes:
        batch: B.
        node: The node that is being widened; new ones are written in front of it.
    """

    def __init__(self, graph: ir.Graph, batch: int) -> None:
        """Begin with no value that differs."""
        self.graph, self.batch = graph, batch
        self.node: ir.Node
        self._rows: dict[ir.Value, Rows] = {}
        self._forms: dict[Any, ir.Value] = {}
        self._count = 0

    def varies(self, value: ir.Value | None) -> bool:
        """Return whether a value differs by row."""
        return value is not None and value in self._rows

    def rows(self, value: ir.Value) -> Rows:
        """Return the rows of a value that differs."""
        return self._rows[value]

    def dims(self, value: ir.Value) -> tuple[Any, ...]:
        """Return the sizes that a value has in one row."""
        return self._rows[value].dims if value in self._rows else dims_of(value)

    def put(self, value: ir.Value, wide: ir.Value, *, own: bool) -> None:
        """Say what stands for a value of one row; its sizes are recorded."""
        found = Rows(value=wide, own=own, dims=dims_of(value))
        if own:
            # Inference doesn't always see it.
            found = Rows(value=wide, own=True, dims=(1, *found.dims[1:]))
        wide.shape = ir.Shape([self.batch, *found.dims[1:]] if own else [self.batch, *found.dims])
        self._rows[value] = found

    def keep(self, inputs: Sequence[ir.Value | None], *, own: bool) -> None:
        """Let the node stand as it is, on other inputs."""
        for index, value in enumerate(inputs):
            if value is not self.node.inputs[index]:
                self.node.replace_input_with(index, value)
        for output in self.node.outputs:
            self.put(output, output, own=own)

    def own(self, value: ir.Value) -> ir.Value:
        """Return a value with its rows in its first axis; of one that is the same for all, B copies."""
        if not self.varies(value):
            return self._form(value, "copies", lambda: self._copies(value))
        rows = self._rows[value]
        if rows.own:
            return rows.value
        assert rows.can_own
        dims = [self.batch, *rows.dims[1:]]
        return self._form(value, "own", lambda: self.op("Squeeze", rows.value, [1], dims=dims))

    def front(self, value: ir.Value, rank: int | None = None) -> ir.Value:
        """Return a value with its rows in front, and ones behind them, so that each row has ``rank`` axes."""
        if not self.varies(value):
            return self._form(value, "front", lambda: self._front_copies(value))
        rows = self._rows[value]
        more = 0 if rank is None else rank - len(rows.dims)
        axes = [*range(1, 1 + more + rows.own)]
        if not axes:
            return rows.value
        dims = [self.batch, *[1] * more, *([1] if rows.own else []), *rows.dims[1 if rows.own else 0 :]]
        return self._form(value, ("front", more), lambda: self.op("Unsqueeze", rows.value, axes, dims=dims))

    def op(self, op_type: str, source: ir.Value, *inputs: Any, dims: Dims, **attributes: Any) -> ir.Value:
        """Write a node in front of the one that is being widened; it is a score where its source is one."""
        return self.ops(op_type, (source, *inputs), like=source, dims=dims, **attributes)

    def ops(
        self, op_type: str, inputs: Sequence[Any], *, like: ir.Value | ir.DataType, dims: Dims, **attributes: Any
    ) -> ir.Value:
        """Write a node whose output has the type of ``like``, and is a score where that is one."""
        producer = like.producer() if isinstance(like, ir.Value) else None
        # A constant's copies are of the type that its reader computes in.
        origin = producer or self.node
        self._count += 1
        b = Builder(
            f"lmmprune/batch/{self._count}",
            score=isinstance(like, ir.Value) and SCORE in origin.metadata_props,
            about={key: origin.metadata_props[key] for key in (METHOD, SITE) if key in origin.metadata_props},
        )
        made = b.op(op_type, *inputs, **attributes)
        made.type = like.type if isinstance(like, ir.Value) else ir.TensorType(like)
        made.shape = ir.Shape(dims)
        b.insert_before(self.graph, self.node)
        return made

    def numbers(self, data: Any) -> ir.Value:
        """Return an int64 constant."""
        array = np.asarray(data, np.int64)
        known = self._forms.get((array.shape, array.tobytes()))
        if known is None:
            self._count += 1
            name = f"lmmprune/batch/numbers_{self._count}"
            known = ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(ir.DataType.INT64),
                const_value=ir.Tensor(array, name=name),
            )
            self.graph.register_initializer(known)
            self._forms[array.shape, array.tobytes()] = known
        return known

    def refuse(self, why: str) -> Refused:
        """Return the refusal of the node that is being widened."""
        return Refused(
            f"--batch: '{self.node.name}' ({self.node.op_type}) {why}; export without --batch, or with another --method"
        )

    def _form(self, value: ir.Value, form: Any, make: Any) -> ir.Value:
        key = (value, form, value.producer() is None and SCORE in self.node.metadata_props)
        if key not in self._forms:
            self._forms[key] = make()
        return self._forms[key]

    def _copies(self, value: ir.Value) -> ir.Value:
        dims = dims_of(value)
        if not dims or dims[0] != 1:
            raise self.refuse(f"joins rows with '{value.name}' of shape {list(dims)}, which has no axis for them")
        target = self.numbers([self.batch, *[1] * (len(dims) - 1)])
        return self.op("Expand", value, target, dims=[self.batch, *dims[1:]])

    def _front_copies(self, value: ir.Value) -> ir.Value:
        dims = dims_of(value)
        raised = self.op("Unsqueeze", value, [0], dims=[1, *dims])
        return self.op("Expand", raised, self.numbers([self.batch, *[1] * len(dims)]), dims=[self.batch, *dims])


def dims_of(value: ir.Value) -> tuple[Any, ...]:
    """Return the sizes of a value of one row.

    Raises:
        Refused: Nobody knows how many it has.
    """
    if value.shape is None:
        raise Refused(f"--batch: the shape of '{value.name}' isn't known; export without --batch")
    return tuple(value.shape)


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """Return the numbers of a constant; None if it is none."""
    if value is None or value.const_value is None or value.producer() is not None:
        return None
    return value.const_value.numpy()
