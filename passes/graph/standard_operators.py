"""Let a graph's structure be read where it has operators that ONNX Runtime alone knows."""

from __future__ import annotations

import onnx_ir as ir

from lmmprune.names import GROUP_QUERY, NBITS
from lmmprune.passes.graph.builder import Builder


def as_standard_operators(model: ir.Model) -> None:
    """Write every MatMulNBits as a MatMul, and every GroupQueryAttention as an Attention behind a cache that grows.

    ONNX infers no shape behind an operator that it doesn't know.

    Args:
        model: Changed in place; it can't be run afterwards.
    """
    as_float_products(model)
    as_attentions(model)


def as_float_products(model: ir.Model) -> dict[ir.Node, ir.Node]:
    """Write every MatMulNBits as a MatMul with a weight ``[K,N]`` that has no values; return which stands for which."""
    replaced = {}
    for node in [node for node in model.graph if node.op_type == NBITS]:
        stored = node.inputs[1]
        assert stored is not None
        sizes = [node.attributes.get_int(name, 0) for name in ("K", "N")]
        name = f"{stored.name}/float"
        if name not in model.graph.initializers:
            result = node.outputs[0].dtype or ir.DataType.FLOAT
            weight = ir.Value(name=name, shape=ir.Shape(sizes), type=ir.TensorType(result))
            # Only the structure is looked at: what is there instead is never read.
            weight.const_value = stored.const_value
            model.graph.register_initializer(weight)
            weight.const_value = None
        product = ir.node("MatMul", [node.inputs[0], model.graph.initializers[name]], name=node.name)
        product.metadata_props.update(node.metadata_props)
        model.graph.insert_before(node, product)
        _hand_over(node.outputs[0], product.outputs[0])
        model.graph.remove(node, safe=True)
        replaced[node] = product
    return replaced


def as_attentions(model: ir.Model) -> None:
    """Write every GroupQueryAttention as an Attention of heads ``[B,H,S,D]``; that it is causal stands at it alone."""
    for node in [node for node in model.graph if node.op_type == GROUP_QUERY]:
        heads, key_heads = (node.attributes.get_int(name, 0) for name in ("num_heads", "kv_num_heads"))
        b = Builder(f"{node.name}/attention", score=False)
        q, k, v = (_split(b, *pair) for pair in zip(node.inputs[:3], (heads, key_heads, key_heads), strict=True))
        present = [b.op("Concat", past, new, axis=2) for past, new in zip(node.inputs[3:5], (k, v), strict=True)]
        scale = node.attributes.get_float("scale", 0.0)
        mixed = b.op("Attention", q, *present, scale=scale, is_causal=1)
        mixed.shape, mixed.type = q.shape, q.type
        attention = mixed.producer()
        assert attention is not None
        attention.name = node.name
        attention.metadata_props.update(node.metadata_props)
        merged = b.op("Reshape", b.op("Transpose", mixed, perm=[0, 2, 1, 3]), [0, 0, -1])
        b.insert_before(model.graph, node)
        for old, new in zip(node.outputs, (merged, *present), strict=True):
            _hand_over(old, new)
        model.graph.remove(node, safe=True)


def _split(b: Builder, value: ir.Value | None, heads: int) -> ir.Value:
    """Return ``[B,S,H*D]`` as ``[B,H,S,D]``."""
    assert value is not None
    assert value.shape is not None
    batch, sequence, width = value.shape
    assert isinstance(width, int)
    split = b.op("Transpose", b.op("Reshape", value, [0, 0, heads, -1]), perm=[0, 2, 1, 3])
    split.shape, split.type = ir.Shape([batch, heads, sequence, width // heads]), value.type
    return split


def _hand_over(old: ir.Value, new: ir.Value) -> None:
    new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, old.name = old.name, None
