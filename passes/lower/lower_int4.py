"""Write products of weights in groups as the operator that ONNX Runtime has kernels for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.lazy import derive, numbers
from lmmprune.names import MICROSOFT, NBITS
from lmmprune.passes.graph.graph_pass import GraphPass
from lmmprune.passes.graph.refusals import Broken
from lmmprune.stored import Array


@dataclass(frozen=True, kw_only=True)
class LowerInt4(GraphPass):
    """Join a MatMul and the DequantizeLinear of groups before its weight.

    Before: ``MatMul(x, DequantizeLinear(w int4 [K,N], scale [G,N], axis=0, block_size=g))``
    After: ``MatMulNBits(x, w uint8 [N,G,g/2], scale [N,G])`` of com.microsoft: two integers in a byte, the first one
    in its lower half, each 8 more than it is worth; a last group that is shorter is filled with zeros

    uint4 and uint8 bring a zero point for each scale, ``[N,ceil(G/2)]`` and ``[N,G]``; integers of eight bits take a
    byte each, int8 128 more than it is worth.

    Attributes:
        level: What the products are made in: 4 asks for activations in INT8, each group of each token with a scale of
            its own; 0 takes the graph's floating-point type.
    """

    level: int

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite; bytes are made when they are written."""
        found = [(node, dq) for node in model.graph if (dq := _dequantizer(node)) is not None]
        packed: dict[ir.Node, list[ir.Value]] = {}
        for node, dq in found:
            if dq not in packed:
                packed[dq] = _pack(model, dq)
            _replace(model, node, dq, packed[dq], self.level)
        for dq in packed:
            read = [value for value in dq.inputs if value is not None]
            model.graph.remove(dq, safe=True)
            for value in read:
                if not value.uses():
                    del model.graph.initializers[str(value.name)]
        if found:
            model.graph.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, modified=bool(found))

    def ensures(self, model: ir.Model) -> None:
        """Check that no weight of four bits is left."""
        for value in model.graph.initializers.values():
            if value.dtype in (ir.DataType.INT4, ir.DataType.UINT4):
                raise Broken(f"'{value.name}' is still {value.dtype.name}: it isn't the weight of a MatMul")


def pack_groups(integers: Array, group: int, *, bits: int = 4, raised: int | None = None) -> Array:
    """Return integers ``[K,N]`` as the bytes ``[N,ceil(K/g),g*bits/8]`` of MatMulNBits.

    Args:
        integers: Of any type that int8 or uint8 can hold.
        group: Inputs that share a scale, g.
        bits: Of an integer, 4 or 8.
        raised: How much more the operator's are; None: half of their range, for signed ones.
    """
    inputs, outputs = integers.shape
    groups = math.ceil(inputs / group)
    middle = 1 << (bits - 1)
    # What lies behind the end of a row meets no input.
    filled = np.full((outputs, groups * group), middle, np.uint8)
    more = np.uint8(middle if raised is None else raised)
    np.add(integers.T.astype(np.int8, copy=False).view(np.uint8), more, out=filled[:, :inputs])
    return (
        pack_halves(filled).reshape(outputs, groups, group // 2)
        if bits == 4
        else filled.reshape(outputs, groups, group)
    )


def pack_halves(rows: Array) -> Array:
    """Return numbers of four bits ``[R,C]``, C even, two in a byte, the first one in its lower half."""
    packed = np.left_shift(rows[:, 1::2], 4)
    packed |= rows[:, ::2]
    return packed


def pack_zeros(zeros: Array, bits: int) -> Array:
    """Return zero points ``[G,N]`` as the bytes of MatMulNBits, ``[N,ceil(G*bits/8)]``."""
    rows = zeros.T.astype(np.uint8)
    return pack_halves(np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))) if bits == 4 else rows


# Type -> bits of an integer, and what is added to it.
_STORED = {
    ir.DataType.INT4: (4, 8),
    ir.DataType.UINT4: (4, 0),
    ir.DataType.INT8: (8, 128),
    ir.DataType.UINT8: (8, 0),
}


def _dequantizer(node: ir.Node) -> ir.Node | None:
    """Return what makes a product's weight of an initializer of four bits."""
    weight = node.inputs[1] if node.op_type == "MatMul" else None
    dq = None if weight is None else weight.producer()
    if dq is None or dq.op_type != "DequantizeLinear" or not dq.attributes.get_int("block_size", 0):
        return None
    return dq


def _pack(model: ir.Model, dq: ir.Node) -> list[ir.Value]:
    values, scale = dq.inputs[:2]
    zeros = dq.inputs[2] if len(dq.inputs) > 2 else None
    assert values is not None
    assert values.dtype is not None
    assert scale is not None
    assert scale.dtype is not None
    group = dq.attributes.get_int("block_size", 0)
    groups, outputs = numbers(scale.shape)
    bits, raised = _STORED[values.dtype]
    made = [
        derive(
            values,
            lambda integers: pack_groups(integers, group, bits=bits, raised=raised),
            dtype=ir.DataType.UINT8,
            shape=(outputs, groups, group * bits // 8),
            name=f"{values.name}/packed",
        ),
        derive(
            scale, lambda array: array.T, dtype=scale.dtype, shape=(outputs, groups), name=f"{scale.name}/by_output"
        ),
    ]
    if zeros is not None:
        shape = (outputs, math.ceil(groups * bits / 8))
        name = f"{zeros.name}/packed"
        made.append(derive(zeros, lambda z: pack_zeros(z, bits), dtype=ir.DataType.UINT8, shape=shape, name=name))
    for value in made:
        model.graph.register_initializer(value)
    return made


def _replace(model: ir.Model, node: ir.Node, dq: ir.Node, packed: list[ir.Value], level: int) -> None:
    inputs, outputs = numbers(dq.outputs[0].shape)
    stored = dq.inputs[0]
    assert stored is not None
    assert stored.dtype is not None
    attributes = {
        "K": inputs,
        "N": outputs,
        "bits": _STORED[stored.dtype][0],
        "block_size": dq.attributes.get_int("block_size", 0),
        "accuracy_level": level,
    }
    product = ir.node(NBITS, [node.inputs[0], *packed], attributes, domain=MICROSOFT, name=node.name)
    product.metadata_props.update(node.metadata_props)
    old, new = node.outputs[0], product.outputs[0]
    new.shape, new.type = old.shape, old.type
    model.graph.insert_before(node, product)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, old.name = old.name, None
    model.graph.remove(node, safe=True)
