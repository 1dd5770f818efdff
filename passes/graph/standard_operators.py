"""Let a graph's structure be read where it has operators that ONNX Runtime alone knows."""

from __future__ import annotations

import onnx_ir as ir

from lmmprune.names import GROUP_QUERY, NBITS


def as_standard_operators(model: ir.Model) -> dict[ir.Node, ir.Node]:
    """Write every MatMulNBits as a MatMul, and every GroupQueryAttention as an Attention that joins the cache.

    ONNX infers no shape behind an operator that it doesn't know. Weights ``[K,N]`` have no values, and no mask is
    written: the attention looks causal by its attribute alone.

    Args:
        model: Changed in place; it can't be run afterwards.

    Returns:
        Each node that is gone, and the one in its place.
    """
    replaced = {}
    for node in list(model.graph):
        if node.op_type == NBITS:
            replaced[node] = _product(model, node)
        elif node.op_type == GROUP_QUERY:
            replaced[node] = _attention(node)
        else:
            continue
        _put_in_place(model.graph, node, replaced[node])
    return replaced


def _product(model: ir.Model, node: ir.Node) -> ir.Node:
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
    return ir.node("MatMul", [node.inputs[0], model.graph.initializers[name]], name=node.name)


def _attention(node: ir.Node) -> ir.Node:
    q, k, v, keys, values = node.inputs[:5]
    attributes = {
        "q_num_heads": node.attributes.get_int("num_heads", 0),
        "kv_num_heads": node.attributes.get_int("kv_num_heads", 0),
        "scale": node.attributes.get_float("scale", 0.0),
        "is_causal": 1,
    }
    return ir.node("Attention", [q, k, v, None, keys, values], attributes, num_outputs=3, name=node.name)


def _put_in_place(graph: ir.Graph, node: ir.Node, other: ir.Node) -> None:
    other.metadata_props.update(node.metadata_props)
    graph.insert_before(node, other)
    for old, new in zip(node.outputs, other.outputs, strict=True):
        new.shape, new.type = old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name, old.name = old.name, None
    graph.remove(node, safe=True)
