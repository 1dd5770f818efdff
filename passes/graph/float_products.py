"""Let a graph's structure be read where products have weights that only ONNX Runtime's operators know."""

from __future__ import annotations

import onnx_ir as ir

from lmmprune.names import NBITS


def as_float_products(model: ir.Model) -> dict[ir.Node, ir.Node]:
    """Write every MatMulNBits as a MatMul with a weight ``[K,N]`` that has no values.

    ONNX infers no shape behind an operator that it doesn't know.

    Args:
        model: Changed in place; it can't be run afterwards.

    Returns:
        Each node that is gone, and the MatMul in its place.
    """
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
        old, new = node.outputs[0], product.outputs[0]
        new.shape, new.type = old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name, old.name = old.name, None
        model.graph.remove(node, safe=True)
        replaced[node] = product
    return replaced
