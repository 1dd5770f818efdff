"""Find, in the graph that the runtime made of an exported one, the node that computes each of its products."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from lmmprune.compiler.explain.kernels import KERNELS, Kind, kind_of
from lmmprune.compiler.explain.layers import Product


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One node of the optimised graph that computes a product.

    Attributes:
        node: Its name, as the profiler gives it.
        op: Its operator.
        kind: Whether it multiplies integers.
        dequantizers: Nodes that expand its weight, or its integer activation, for it alone.
    """

    node: str
    op: str
    kind: Kind
    dequantizers: tuple[str, ...]


def match_kernels(layers: Sequence[Product], optimised: Path) -> dict[str, Kernel]:
    """Return the kernel of every layer by the layer's node name; one that is missing was folded or joined.

    Fused nodes have new names and places. What stays is, in this order of trust: the name of the weight, the name of
    the value that comes out (followed forward over what the runtime put behind, as a change of layout), and the old
    node's name as the beginning of the new one.

    Args:
        layers: Of the exported graph.
        optimised: What the runtime wrote (``optimized_model_filepath``).
    """
    graph = ir.load(optimised).graph
    products = [node for node in graph if node.op_type in KERNELS]
    free = {node: None for node in products}  # a dict for its order
    matched: dict[str, Kernel] = {}
    for find in (_by_weight, _by_output, _by_name):
        waiting = [layer for layer in layers if layer.node not in matched]
        for layer, node in find(waiting, list(free)):
            if layer.node not in matched and node in free:
                matched[layer.node] = _kernel(node)
                del free[node]
    return matched


def _by_weight(layers: Sequence[Product], products: Sequence[ir.Node]) -> list[tuple[Product, ir.Node]]:
    """Pair by a weight that exactly one layer and one node read: shared weights are left to the other ways."""
    owners: dict[str, list[Product]] = defaultdict(list)
    readers: dict[str, list[ir.Node]] = defaultdict(list)
    for layer in layers:
        if layer.stored is not None:
            owners[layer.stored].append(layer)
    for node in products:
        for name in {str(weight.name) for weight in _weights(node)}:
            readers[_owner(name, owners)].append(node)
    return [
        (owners[name][0], nodes[0]) for name, nodes in readers.items() if len(nodes) == 1 and len(owners[name]) == 1
    ]


def _by_output(layers: Sequence[Product], products: Sequence[ir.Node]) -> list[tuple[Product, ir.Node]]:
    owners = {name: layer for layer in layers for name in layer.outputs}
    pairs = []
    for node in products:
        name = _first_known(node.outputs[0], owners)
        if name is not None:
            pairs.append((owners[name], node))
    return pairs


def _by_name(layers: Sequence[Product], products: Sequence[ir.Node]) -> list[tuple[Product, ir.Node]]:
    # The longest first: 'node_linear_2' is the beginning of 'node_linear_27'.
    longest = sorted(layers, key=lambda layer: -len(layer.node))
    pairs = []
    for node in products:
        owner = next((layer for layer in longest if layer.node and _extends(str(node.name), layer.node)), None)
        if owner is not None:
            pairs.append((owner, node))
    return pairs


def _extends(name: str, beginning: str) -> bool:
    return name == beginning or (name.startswith(beginning) and not name[len(beginning)].isdigit())


def _weights(node: ir.Node) -> list[ir.Value]:
    """Return the initializers of two or more axes that a node multiplies by, seen through what prepares them."""
    found = []
    for value in node.inputs:
        while value is not None and (producer := value.producer()) is not None and _prepares(producer):
            value = producer.inputs[0]
        if value is not None and value.is_initializer() and value.shape is not None and len(value.shape) >= 2:
            found.append(value)
    return found


def _prepares(node: ir.Node) -> bool:
    return node.op_type in {"DequantizeLinear", "Transpose", "Cast", "Reshape", "ReorderInput"}


def _owner(name: str, owners: Mapping[str, list[Product]]) -> str:
    """Return the weight that an initializer was made of: its own name, or the longest that it begins with."""
    if name in owners:
        return name
    return max((known for known in owners if _extends(name, known)), key=len, default="")


# What the runtime may put between a product and the value that the exported graph calls its result.
_BEHIND = {"ReorderOutput", "Reshape", "Transpose", "Cast", "QuantizeLinear", "DequantizeLinear", "Identity"}


def _first_known(value: ir.Value, owners: Mapping[str, Product]) -> str | None:
    """Return the first of a value and what it becomes that a layer has as its result."""
    while str(value.name) not in owners:
        users = [user for user, _ in value.uses()]
        if len(users) != 1 or users[0].op_type not in _BEHIND:
            return None
        value = users[0].outputs[0]
    return str(value.name)


def _kernel(node: ir.Node) -> Kernel:
    levels = {name: attribute.value for name, attribute in node.attributes.items() if name == "accuracy_level"}
    alone = []
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None and producer.op_type == "DequantizeLinear" and len(producer.outputs[0].uses()) == 1:
            alone.append(str(producer.name))
    return Kernel(node=str(node.name), op=node.op_type, kind=kind_of(node.op_type, levels), dequantizers=tuple(alone))
