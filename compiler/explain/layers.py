"""The products of an exported graph: every MatMul, Gemm, Conv and Attention, with its part and how it is quantized."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lmmprune.compiler.onnx_files.load_onnx import load_onnx
from lmmprune.names import NBITS
from lmmprune.passes.find.blocks import ATTENTIONS, find_blocks
from lmmprune.passes.graph.builder import SCORE
from lmmprune.passes.graph.standard_operators import as_float_products

_PRODUCTS = {"MatMul", "Gemm", "Conv", "MatMulInteger", NBITS, *ATTENTIONS}
# A weight that was changed is named after the one it was: 'w' becomes 'w/smooth', 'w/int8', 'w.axis0/int8', 'w/int4' or
# 'w/int4/packed'.
_CHANGED = re.compile(r"(/smooth'*)*(\.axis\d+)?((/int8|/int4)(/packed)?)?$")


@dataclass(frozen=True, kw_only=True)
class Product:
    """One product of the exported graph, before the runtime rewrites it.

    Attributes:
        node: Name of the node.
        op: Its operator.
        outputs: Names of the values that are its result: before and behind the scales of an integer product.
        weight: Name of its floating-point weight, None if both factors are activations.
        stored: Name of the initializer that holds the weight.
        stored_as: Type of that initializer, such as ``INT8``.
        float_type: Type that the product is made in, or rescaled to.
        activation: Integer type that its activation is quantized to, None if it isn't.
        dynamic: Whether the activation's range is taken at run-time.
        output_quantized: Whether a QuantizeLinear follows.
        bias: Name of the one-dimensional value that is added next, None if there is none.
        score: Whether it belongs to a pruning method's score.
        layer: Number of the transformer layer, None outside of them.
        role: One of ``blocks.ROLES``, or ``attention``, ``score``, ``other``.
    """

    node: str
    op: str
    outputs: tuple[str, ...]
    weight: str | None
    stored: str | None
    stored_as: str | None
    float_type: str
    activation: str | None
    dynamic: bool
    output_quantized: bool
    bias: str | None
    score: bool
    layer: int | None
    role: str

    @property
    def quantized(self) -> bool:
        """Whether its weight is stored in integers."""
        return self.stored_as in {"INT8", "UINT8", "INT4"}

    @property
    def key(self) -> str:
        """What tells it from the graph's other products, in every variant of a model alike."""
        return self.weight if self.weight is not None and not self.score else self.node


def read_layers(graph: Path) -> list[Product]:
    """Return the products of a graph in its order, without reading the weights.

    Args:
        graph: ONNX file; floating point or quantized by any scheme of ``LINTED``.
    """
    model = load_onnx(graph)
    found = {node: _describe(node) for node in model.graph if node.op_type in _PRODUCTS}
    attentions = [node for node in found if node.op_type in ATTENTIONS]
    # Roles are read off a floating-point graph: here one with the quantization taken out again.
    replaced = _unquantize(model)
    blocks = find_blocks(model)
    layers = []
    for node, layer in found.items():
        block = blocks.get(replaced.get(node, node))
        role, number = "other", None
        if layer.score:
            role = "score"
        elif node.op_type in ATTENTIONS:
            role, number = "attention", attentions.index(node)
        elif block is not None:
            role, number = block.role, block.layer
        layers.append(Product(**{**vars(layer), "role": role, "layer": number}))
    return layers


def _describe(node: ir.Node) -> Product:
    activation, weight = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    stored = _stored(weight)
    quantizer = _quantizer(activation)
    results = _results(node)
    return Product(
        node=str(node.name),
        op=node.op_type,
        outputs=tuple(str(value.name) for value in results),
        weight=None if stored is None else _CHANGED.sub("", str(stored.name), count=1),
        stored=None if stored is None else str(stored.name),
        stored_as=None if stored is None or stored.dtype is None else stored.dtype.name,
        float_type=results[-1].dtype.name if results[-1].dtype is not None else "FLOAT",
        activation=None if quantizer is None or stored is None else _integer_type(quantizer),
        dynamic=quantizer is not None and quantizer.op_type == "DynamicQuantizeLinear",
        output_quantized=any(user.op_type == "QuantizeLinear" for user, _ in results[-1].uses()),
        bias=_bias(node, results[-1]),
        score=SCORE in node.metadata_props,
        layer=None,
        role="other",
    )


def _stored(weight: ir.Value | None) -> ir.Value | None:
    """Return the initializer of at least two axes that a weight comes from."""
    while weight is not None and (producer := weight.producer()) is not None:
        if producer.op_type not in {"DequantizeLinear", "Transpose", "Cast", "Reshape"}:
            return None
        weight = producer.inputs[0]
    if weight is None or not weight.is_initializer() or weight.shape is None or len(weight.shape) < 2:
        return None
    return weight


def _quantizer(value: ir.Value | None) -> ir.Node | None:
    """Return the node that quantizes an activation, looking through its DequantizeLinear."""
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        source = producer.inputs[0]
        producer = source.producer() if source is not None else None
    return producer if producer is not None and producer.op_type.endswith("QuantizeLinear") else None


def _integer_type(quantizer: ir.Node) -> str:
    if quantizer.op_type == "DynamicQuantizeLinear":
        return "UINT8"
    zero = quantizer.inputs[2] if len(quantizer.inputs) > 2 else None
    return zero.dtype.name if zero is not None and zero.dtype is not None else "UINT8"


def _results(node: ir.Node) -> list[ir.Value]:
    """Return the node's output; for an integer product also what it is cast and rescaled to."""
    values = [node.outputs[0]]
    while node.op_type == "MatMulInteger" and len(users := [user for user, _ in values[-1].uses()]) == 1:
        if users[0].op_type not in {"Cast", "Mul"}:
            break
        values.append(users[0].outputs[0])
        if users[0].op_type == "Mul":
            break
    return values


def _bias(node: ir.Node, result: ir.Value) -> str | None:
    if len(node.inputs) > 2 and node.op_type in {"Gemm", "Conv"} and node.inputs[2] is not None:
        return str(node.inputs[2].name)
    users = [user for user, _ in result.uses()]
    if len(users) != 1 or users[0].op_type != "Add":
        return None
    for value in users[0].inputs:
        if value is not None and value.is_initializer() and value.shape is not None and len(value.shape) == 1:
            return str(value.name)
    return None


def _unquantize(model: ir.Model) -> dict[ir.Node, ir.Node]:
    """Take the quantization out of a graph's structure; return the nodes that integer products were replaced by."""
    replaced = as_float_products(model)
    for node in list(model.graph):
        if node.op_type == "MatMulInteger":
            replaced[node] = _float_product(model, node)
    for node in list(model.graph):
        if node.op_type != "DequantizeLinear":
            continue
        quantizer = _quantizer(node.outputs[0])
        if quantizer is not None and quantizer.inputs[0] is not None:
            node.outputs[0].replace_all_uses_with(quantizer.inputs[0], replace_graph_outputs=True)
        elif (stored := _stored(node.outputs[0])) is not None:
            node.outputs[0].replace_all_uses_with(_float_weight(model, stored))
    RemoveUnusedNodesPass()(model)
    return replaced


def _float_product(model: ir.Model, node: ir.Node) -> ir.Node:
    quantizer, stored, result = _quantizer(node.inputs[0]), _stored(node.inputs[1]), _results(node)[-1]
    activation = node.inputs[0] if quantizer is None else quantizer.inputs[0]
    weight = node.inputs[1] if stored is None else _float_weight(model, stored)
    product = ir.node("MatMul", [activation, weight], name=node.name)
    # Behind everything that rescales: there its output is known to come before its users.
    last = result.producer()
    assert last is not None
    model.graph.insert_after(last, product)
    product.outputs[0].shape, product.outputs[0].type = result.shape, result.type
    name = result.name
    result.replace_all_uses_with(product.outputs[0], replace_graph_outputs=True)
    result.name, product.outputs[0].name = f"{name}/integer", name
    return product


def _float_weight(model: ir.Model, stored: ir.Value) -> ir.Value:
    name = f"{stored.name}/float"
    if name not in model.graph.initializers:
        value = ir.Value(name=name, shape=stored.shape, type=ir.TensorType(ir.DataType.FLOAT))
        value.const_value = stored.const_value  # never read: only the structure is looked at
        model.graph.register_initializer(value)
    return model.graph.initializers[name]
