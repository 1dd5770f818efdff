"""How operators on values become those of several rows: element by element, products, and per image."""

from __future__ import annotations

import math

import onnx_ir as ir

from lmmprune.passes.batch.rows import Widening, constant_of, dims_of


def elementwise(w: Widening) -> None:
    """Add, Where, Cast ...: operands are broadcast from behind, so that rows in front must stand in the same place."""
    node = w.node
    _check_scales(w)
    rank = len(dims_of(node.outputs[0]))
    varying = [value for value in node.inputs if value is not None and w.varies(value)]
    same = [value for value in node.inputs if value is not None and not w.varies(value)]
    own = (
        rank > 0
        and any(w.rows(value).own for value in varying)
        and all(w.rows(value).can_own and len(w.rows(value).dims) == rank for value in varying)
        and all(len(dims_of(value)) < rank or dims_of(value)[0] == 1 for value in same)
    )
    inputs = [
        (w.own(value) if own else w.front(value, rank)) if value is not None and w.varies(value) else value
        for value in node.inputs
    ]
    w.keep(inputs, own=own)


def _check_scales(w: Widening) -> None:
    """Refuse scales along an axis, which would have to move."""
    node = w.node
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    scale = node.inputs[1]
    assert scale is not None
    if math.prod(int(dim) for dim in dims_of(scale)) != 1 or w.varies(scale):
        raise w.refuse("has a scale per channel on a value that differs from row to row")


def product(w: Widening) -> None:
    """MatMul, MatMulInteger: rows are one more axis of a stack of matrices, or of a table."""
    node = w.node
    left, right = node.inputs[0], node.inputs[1]
    assert left is not None
    assert right is not None
    if any(w.varies(value) for value in node.inputs[2:]):
        raise w.refuse("has a zero point that differs from row to row")
    ranks = len(w.dims(left)), len(w.dims(right))
    rank = max(ranks)
    if min(ranks) < 2:
        raise w.refuse("multiplies a vector")
    varying = [value for value in (left, right) if w.varies(value)]
    same = [value for value in (left, right) if not w.varies(value)]
    stacked = rank > 2 and all(len(dims_of(value)) < rank or dims_of(value)[0] == 1 for value in same)
    # The rows of a table [1,K] times a matrix are a table [B,K].
    table = rank == 2 and varying == [left]
    own = (stacked or table) and all(w.rows(value).can_own and len(w.rows(value).dims) == rank for value in varying)
    own = own and any(w.rows(value).own for value in varying)
    sides = [(w.own(value) if own else w.front(value, rank)) if w.varies(value) else value for value in (left, right)]
    w.keep([*sides, *node.inputs[2:]], own=own)


def reshape(w: Widening) -> None:
    """Reshape: rows lie one behind the other in memory, whatever the sizes of one."""
    node, data, target = w.node, w.node.inputs[0], w.node.inputs[1]
    assert data is not None
    assert target is not None
    if w.varies(target) or not w.varies(data):
        raise w.refuse("has a shape that differs from row to row")
    rows, numbers = w.rows(data), constant_of(target)
    after = dims_of(node.outputs[0])
    # Without knowing it, any size of the target may be a 0, which stands for the input's at that place.
    copies = not node.attributes.get_int("allowzero", 0) and (numbers is None or bool((numbers == 0).any()))
    own = len(after) > 0 and after[0] == 1 and (rows.own or (not copies and rows.can_own))
    if own:
        value = rows.value
        shape = [w.batch, *numbers[1:]] if numbers is not None else None
        start = 1
    else:
        value = w.front(data) if copies else rows.value
        shape = [w.batch, *numbers] if numbers is not None else None
        start = 0
    if shape is not None:
        wide = w.numbers(shape)
    else:
        count = len(after)
        rest = target
        if start:
            rest = w.op("Slice", target, w.numbers([1]), w.numbers([count]), w.numbers([0]), dims=[count - 1])
        wide = w.ops("Concat", [w.numbers([w.batch]), rest], like=target, dims=[count + 1 - start], axis=0)
    w.keep([value, wide], own=own)


def expand(w: Widening) -> None:
    """Expand: a size of 1 in the target leaves the rows alone."""
    node, data, target = w.node, w.node.inputs[0], w.node.inputs[1]
    assert data is not None
    assert target is not None
    if w.varies(target):
        raise w.refuse("has a shape that differs from row to row")
    rows, after, numbers = w.rows(data), dims_of(node.outputs[0]), constant_of(target)
    length = len(numbers) if numbers is not None else dims_of(target)[0]
    if rows.own and len(rows.dims) == len(after) == length and after[0] == 1:
        w.keep([rows.value, target], own=True)
        return
    if not isinstance(length, int):
        raise w.refuse("has a target of unknown length")
    more = len(after) - length
    if numbers is not None:
        wide = w.numbers([1] * (1 + more) + list(numbers))
    else:
        wide = w.ops("Concat", [w.numbers([1] * (1 + more)), target], like=target, dims=[1 + more + length], axis=0)
    w.keep([w.front(data, len(after)), wide], own=False)


def gather(w: Widening) -> None:
    """Gather: where table and places both differ, one Gather on the tables of all rows, one below the other."""
    node, table, places = w.node, w.node.inputs[0], w.node.inputs[1]
    assert table is not None
    assert places is not None
    axis = node.attributes.get_int("axis", 0) % len(w.dims(table))
    if not w.varies(places):
        rows = w.rows(table)
        keeps = rows.own and axis > 0
        node.attributes["axis"] = ir.AttrInt64("axis", axis if keeps else axis + 1)
        w.keep([rows.value if keeps else w.front(table), places], own=keeps)
    elif w.varies(table):
        _gather_own(w, table, places, axis)
    elif axis == 0:
        w.keep([table, w.rows(places).value], own=w.rows(places).own)
    else:
        _gather_same(w, table, places, axis)


def _gather_same(w: Widening, table: ir.Value, places: ir.Value, axis: int) -> None:
    """Write ``out[b, ..., i, ...] = table[..., places[b, i], ...]`` of a table that is the same for all rows."""
    dims, counted = list(w.dims(table)), list(w.dims(places))
    before, behind = dims[:axis], dims[axis + 1 :]
    wide = [*before, w.batch, *counted, *behind]
    taken = w.op("Gather", table, w.front(places), dims=wide, axis=axis)
    perm = [axis, *(place for place in range(len(wide)) if place != axis)]
    turned = w.op("Transpose", taken, dims=[w.batch, *before, *counted, *behind], perm=perm)
    _stand_in(w.node, turned)
    w.put(w.node.outputs[0], turned, own=False)


def _gather_own(w: Widening, table: ir.Value, places: ir.Value, axis: int) -> None:
    """Write ``out[b, i, ...] = table[b, places[b, i], ...]``."""
    node, out = w.node, w.node.outputs[0]
    dims, counted = list(w.dims(table)), list(w.dims(places))
    before, behind = dims[:axis], dims[axis + 1 :]
    inner = [*before, *behind]
    if not all(isinstance(dim, int) for dim in inner):
        _gather_each(w, table, places, axis)
        return
    front = w.front(table)
    length = dims[axis]
    if isinstance(length, int):
        starts = w.numbers([row * length for row in range(w.batch)])
    else:
        size = w.op("Shape", front, dims=[1], start=axis + 1, end=axis + 2)
        size.type = ir.TensorType(ir.DataType.INT64)
        starts = w.ops("Mul", [w.numbers(range(w.batch)), size], like=ir.DataType.INT64, dims=[w.batch])
    lifted = w.numbers([w.batch, *[1] * len(counted)])
    starts = w.ops("Reshape", [starts, lifted], like=ir.DataType.INT64, dims=[w.batch, *[1] * len(counted)])
    at = w.ops("Add", [w.front(places), starts], like=ir.DataType.INT64, dims=[w.batch, *counted])
    turned = front
    if math.prod(before) != 1:
        perm = [0, axis + 1, *range(1, axis + 1), *range(axis + 2, len(dims) + 1)]
        turned = w.op("Transpose", front, dims=[w.batch, length, *inner], perm=perm)
        flat_inner = inner
    else:
        flat_inner = behind
    flat = w.op("Reshape", turned, w.numbers([-1, *flat_inner]), dims=[None, *flat_inner])
    taken = w.op("Gather", flat, at, dims=[w.batch, *counted, *flat_inner], axis=0)
    if math.prod(before) != 1:
        count, first = len(counted), 1 + len(counted)
        perm = [0, *range(first, first + axis), *range(1, 1 + count), *range(first + axis, first + len(inner))]
        taken = w.op("Transpose", taken, dims=[w.batch, *before, *counted, *behind], perm=perm)
    elif axis > 1:
        axes = w.numbers(range(1, axis + 1))
        taken = w.op("Unsqueeze", taken, axes, dims=[w.batch, *before, *counted, *behind])
    own = axis == 1 and before == [1]
    _stand_in(node, taken)
    w.put(out, taken, own=own)


def _gather_each(w: Widening, table: ir.Value, places: ir.Value, axis: int) -> None:
    """Write one Gather per row, where sizes that aren't numbers keep the tables apart."""
    dims, counted = list(w.dims(table)), list(w.dims(places))
    after = [*dims[:axis], *counted, *dims[axis + 1 :]]
    tables, wanted, pieces = w.front(table), w.front(places), []
    for row in range(w.batch):
        index = w.numbers(row)
        mine = w.op("Gather", tables, index, dims=dims, axis=0)
        here = w.op("Gather", wanted, index, dims=counted, axis=0)
        piece = w.op("Gather", mine, here, dims=after, axis=axis)
        _stand_in(w.node, piece)
        pieces.append(w.op("Unsqueeze", piece, w.numbers([0]), dims=[1, *after]))
    whole = w.ops("Concat", pieces, like=pieces[0], dims=[w.batch, *after], axis=0)
    w.put(w.node.outputs[0], whole, own=False)


def _stand_in(node: ir.Node, taken: ir.Value) -> None:
    """Give the last node what the one that it stands for was called and said of itself."""
    producer = taken.producer()
    assert producer is not None
    producer.metadata_props.update(node.metadata_props)


def per_image(w: Widening) -> None:
    """Conv, Attention, RotaryEmbedding: they have a first axis for images already, which takes the rows."""
    node = w.node
    values = [value for value in node.inputs if value is not None]
    varying = [value for value in values if w.varies(value)]
    if all(w.rows(value).can_own for value in varying):
        w.keep([_owned(w, index) for index in range(len(node.inputs))], own=True)
        return
    images = w.dims(node.inputs[0])[0] if node.inputs[0] is not None else None
    if not isinstance(images, int):
        raise w.refuse("works on an unknown number of images")
    w.keep([_folded(w, index, images) for index in range(len(node.inputs))], own=False)
    for output in node.outputs:
        # What it makes are B times as many images, which are put apart behind it.
        dims = w.dims(output)
        wide = [w.batch, images, *dims[1:]]
        if not all(isinstance(dim, int) for dim in dims):
            raise w.refuse("makes values of unknown size for several images")
        users = list(output.uses())
        apart = ir.node("Reshape", [output, w.numbers(wide)], name=f"{output.name}/rows")
        apart.outputs[0].name, apart.outputs[0].type = f"{output.name}/rows", output.type
        w.graph.insert_after(node, apart)
        for user, index in users:
            user.replace_input_with(index, apart.outputs[0])
        apart.outputs[0].shape = ir.Shape(dims)
        output.shape = ir.Shape([w.batch * images, *dims[1:]])
        w.put(apart.outputs[0], apart.outputs[0], own=False)


# Inputs that have no axis for images: weights and bias of a Conv, what a decoder's Attention broadcasts.
_MASK = 3


def _owned(w: Widening, index: int) -> ir.Value | None:
    node, value = w.node, w.node.inputs[index]
    if value is None or (not w.varies(value) and (node.op_type == "Conv" or index == _MASK)):
        return value
    return w.own(value)


def _folded(w: Widening, index: int, images: int) -> ir.Value | None:
    node, value = w.node, w.node.inputs[index]
    if value is None or (not w.varies(value) and node.op_type == "Conv"):
        return value
    dims = w.dims(value)
    if node.op_type == "Attention" and index == _MASK and not w.varies(value) and (len(dims) < 4 or dims[0] == 1):
        return value
    rest = dims[1:]
    if dims[0] != images or not all(isinstance(dim, int) for dim in rest):
        raise w.refuse(f"has '{value.name}' of shape {list(dims)} for {images} images")
    wide = [w.batch * images, *rest]
    return w.op("Reshape", w.front(value), w.numbers(wide), dims=wide)
