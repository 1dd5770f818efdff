"""How operators that know their axes become those of several rows: an axis moves where rows stand in front of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from lmmprune.passes.batch.rows import Widening, constant_of, dims_of


def along_axis(w: Widening, default: int) -> None:
    """Softmax, TopK, ArgMax, Split, CumSum ...: one input differs by row, and one axis is worked along."""
    node = w.node
    data = _only_first(w)
    rank = len(w.rows(data).dims)
    given = constant_of(node.inputs[1]) if node.op_type == "CumSum" else node.attributes.get_int("axis", default)
    if given is None:
        raise w.refuse("has an axis that isn't constant")
    axis = int(given) % rank
    rows = w.rows(data)
    keeps = rows.own and axis > 0
    if not keeps:
        if node.op_type == "CumSum":
            node.replace_input_with(1, w.numbers(axis + 1))
        else:
            node.attributes["axis"] = ir.AttrInt64("axis", axis + 1)
    w.keep([rows.value if keeps else w.front(data), *node.inputs[1:]], own=keeps)


def normalize(w: Widening) -> None:
    """LayerNormalization, RMSNormalization: over the last axes, counted from behind."""
    node, data = w.node, _only_first(w)
    rows = w.rows(data)
    axis = node.attributes.get_int("axis", -1)
    if axis >= 0:
        node.attributes["axis"] = ir.AttrInt64("axis", axis - len(rows.dims))
    w.keep([rows.value, *node.inputs[1:]], own=rows.own)


def reduce_axes(w: Widening) -> None:
    """ReduceMean, ReduceSum ...: axes as input."""
    node, data = w.node, _only_first(w)
    rows = w.rows(data)
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is None and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        raise w.refuse("reduces no axis")
    axes = _axes(w, given, len(rows.dims)) if given is not None else list(range(len(rows.dims)))
    if rows.own and 0 not in axes:
        w.keep([rows.value, *node.inputs[1:]], own=True)
        return
    moved = w.numbers([axis + 1 for axis in axes])
    front = w.front(data)
    if given is None:
        node.resize_inputs(2)
    w.keep([front, moved], own=False)


def transpose(w: Widening) -> None:
    """Transpose: the rows stay in front."""
    node, data = w.node, _only_first(w)
    rows = w.rows(data)
    perm = list(node.attributes.get_ints("perm", list(reversed(range(len(rows.dims))))))
    if rows.own and perm[0] == 0:
        w.keep([rows.value], own=True)
        return
    node.attributes["perm"] = ir.AttrInt64s("perm", [0, *(axis + 1 for axis in perm)])
    w.keep([w.front(data)], own=False)


def squeeze(w: Widening) -> None:
    """Squeeze: where the rows' own axis goes, they stand in front of what is left."""
    node, data = w.node, _only_first(w)
    rows = w.rows(data)
    if len(node.inputs) < 2:
        raise w.refuse("doesn't say which axes it takes away")
    axes = _axes(w, node.inputs[1], len(rows.dims))
    if not rows.own:
        w.keep([rows.value, w.numbers([axis + 1 for axis in axes])], own=False)
    elif axes == [0]:
        w.put(node.outputs[0], rows.value, own=False)
    else:
        w.keep([rows.value, w.numbers([axis for axis in axes if axis])], own=0 not in axes)


def unsqueeze(w: Widening) -> None:
    """Unsqueeze: an axis of one in front of everything becomes the rows'."""
    node, data = w.node, _only_first(w)
    rows = w.rows(data)
    axes = _axes(w, node.inputs[1], len(dims_of(node.outputs[0])))
    if rows.own and 0 not in axes:
        w.keep([rows.value, node.inputs[1]], own=True)
    elif not rows.own and axes == [0]:
        w.put(node.outputs[0], rows.value, own=True)
    else:
        w.keep([w.front(data), w.numbers([axis + 1 for axis in axes])], own=False)


def slice_rows(w: Widening) -> None:
    """Slice: the same piece of every row."""
    node, data = w.node, _only_first(w)
    rows = w.rows(data)
    count = len(dims_of(_given(w, 1)))
    count = int(dims_of(_given(w, 1))[0]) if count else 1
    given = node.inputs[3] if len(node.inputs) > 3 else None
    axes = _axes(w, given, len(rows.dims)) if given is not None else list(range(count))
    rest = list(node.inputs[4:])
    if rows.own and 0 not in axes:
        w.keep([rows.value, *node.inputs[1:]], own=True)
        return
    front, moved = w.front(data), w.numbers([axis + 1 for axis in axes])
    if given is None:
        node.resize_inputs(4)
    w.keep([front, *node.inputs[1:3], moved, *rest], own=False)


def concat(w: Widening) -> None:
    """Concat: what is the same for all rows is repeated."""
    node = w.node
    values = [value for value in node.inputs if value is not None]
    axis = node.attributes.get_int("axis", 0) % len(dims_of(node.outputs[0]))
    can_own = all(w.rows(value).can_own if w.varies(value) else dims_of(value)[0] == 1 for value in values)
    own = axis > 0 and can_own
    if not own:
        node.attributes["axis"] = ir.AttrInt64("axis", axis + 1)
    w.keep([w.own(value) if own else w.front(value) for value in values], own=own)


def shape_of_a_row(w: Widening) -> None:
    """Shape: that of one row, as before, which is the same for all."""
    node, data = w.node, _given(w, 0)
    rows = w.rows(data)
    rank = len(rows.dims)
    start, end = _bounds(node, rank)
    if not rows.own:
        node.attributes["start"], node.attributes["end"] = (
            ir.AttrInt64("start", start + 1),
            ir.AttrInt64("end", end + 1),
        )
        node.replace_input_with(0, rows.value)
        return
    node.replace_input_with(0, rows.value)
    node.attributes["start"], node.attributes["end"] = ir.AttrInt64("start", max(start, 1)), ir.AttrInt64("end", end)
    if start:
        return
    one = w.numbers([1])
    if end <= 1:
        ir.convenience.replace_all_uses_with(node.outputs[0], one)
        return
    # Behind the node: what it gives is the rest of the shape.
    users = list(node.outputs[0].uses())
    join = ir.node("Concat", [one, node.outputs[0]], {"axis": 0}, name=f"{node.name}/of_a_row")
    join.outputs[0].name, join.outputs[0].type = f"{node.name}/of_a_row", node.outputs[0].type
    join.outputs[0].shape, node.outputs[0].shape = ir.Shape([end]), ir.Shape([end - 1])
    w.graph.insert_after(node, join)
    for user, index in users:
        user.replace_input_with(index, join.outputs[0])


def _bounds(node: ir.Node, rank: int) -> tuple[int, int]:
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
    return (
        max(0, start + rank) if start < 0 else min(start, rank),
        max(0, end + rank) if end < 0 else min(end, rank),
    )


def _axes(w: Widening, given: ir.Value | None, rank: int) -> list[int]:
    axes = constant_of(given)
    if axes is None:
        raise w.refuse("has axes that aren't constant")
    return [int(axis) % rank for axis in np.atleast_1d(axes)]


def _given(w: Widening, index: int) -> ir.Value:
    value = w.node.inputs[index]
    assert value is not None
    return value


def _only_first(w: Widening) -> ir.Value:
    """Return the first input, which alone may differ by row.

    Raises:
        Refused: Another one does.
    """
    others: Sequence[ir.Value | None] = w.node.inputs[1:]
    found = next((value for value in others if w.varies(value)), None)
    if found is not None or not w.varies(w.node.inputs[0]):
        name = found.name if found is not None else "its settings"
        raise w.refuse(f"takes '{name}', which differs from row to row")
    return _given(w, 0)
