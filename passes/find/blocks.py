"""Name every weight by the part it plays: which layer, and q/k/v, out, up, down, projector, lm_head or patch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.names import GROUP_QUERY, IMAGE_FEATURES, LOGITS, PATCHES
from lmmprune.passes.graph.builder import SCORE
from lmmprune.passes.graph.refusals import Refused

# The roles, in the order in which a token meets them.
ROLES = ("patch", "qkv", "out", "up", "down", "projector", "lm_head", "score", "other")

ATTENTIONS = frozenset({"Attention", GROUP_QUERY})
_WITH_WEIGHT = {"MatMul", "Gemm", "Conv", "MatMulInteger", "MatMulNBits"}
_ROLE_OF_OUTPUT = {IMAGE_FEATURES: "projector", PATCHES: "projector", LOGITS: "lm_head"}


@dataclass(frozen=True, kw_only=True, order=True)
class Block:
    """A part of a graph that is quantized, or kept in floating point, as a whole.

    Attributes:
        layer: Number of the transformer layer, from 0; None outside of the layers.
        role: One of ``ROLES``; q, k and v are one block, so are gate and up.
    """

    layer: int | None
    role: str

    @property
    def name(self) -> str:
        """How a policy and a table name it."""
        return self.role if self.layer is None else f"layer_{self.layer}.{self.role}"


def weighted(model: ir.Model) -> list[ir.Node]:
    """Return the MatMul, Gemm and Conv nodes whose second input is a weight, quantized or not, scores excepted."""
    return [
        node
        for node in model.graph
        if node.op_type in _WITH_WEIGHT and SCORE not in node.metadata_props and weight_of(node) is not None
    ]


def find_blocks(model: ir.Model) -> dict[ir.Node, Block]:
    """Return the block of every node of ``weighted(model)``, read off the structure of the graph.

    A weight in front of an ``Attention`` is q/k/v; one that leads into a residual sum is ``out`` before the MLP and
    ``down`` behind it; one that leads into ``down`` is ``up`` (or gate); what makes ``image_features`` or ``logits`` is
    ``projector`` or ``lm_head``, with what leads only there. What only a score reads is ``score``.
    """
    nodes = weighted(model)
    order = {node: index for index, node in enumerate(model.graph)}
    attentions = [node for node in model.graph if node.op_type in ATTENTIONS]
    place = {node: number for number, node in enumerate(attentions)}
    majors = {*nodes, *attentions}
    blocks: dict[ir.Node, Block] = {}
    for node in reversed(nodes):
        if node.op_type == "Conv":
            blocks[node] = Block(layer=None, role="patch")
            continue
        ends = _ends(node, majors)
        attended = [place[end] for end in ends if isinstance(end, ir.Node) and end in place]
        outputs = [_ROLE_OF_OUTPUT[end] for end in ends if isinstance(end, str) and end in _ROLE_OF_OUTPUT]
        onward = {blocks[end] for end in ends if isinstance(end, ir.Node) and end in blocks}
        # The layer that a node belongs to, if it lies behind an attention: the last one before it.
        behind = max((place[a] for a in attentions if order[a] < order[node]), default=None)
        if not ends:
            blocks[node] = Block(layer=behind, role="score")
        elif attended:
            blocks[node] = Block(layer=min(attended), role="qkv")
        elif outputs:
            blocks[node] = Block(layer=None, role=outputs[0])
        elif _RESIDUAL in ends:
            fed = _fed_by_attention(node, majors)
            blocks[node] = Block(layer=behind, role="out" if fed else "down")
        elif onward and all(block.role == "down" for block in onward):
            blocks[node] = Block(layer=behind, role="up")
        elif onward and all(block.role in {"projector", "lm_head"} for block in onward):
            blocks[node] = Block(layer=None, role=next(iter(onward)).role)
        else:
            blocks[node] = Block(layer=behind, role="other")
    return {node: blocks[node] for node in nodes}


def refuse_unknown(model: ir.Model, names: frozenset[str]) -> None:
    """Refuse names that no block has.

    Raises:
        Refused: One is unknown; with those that there are.
    """
    known = {block.name for block in find_blocks(model).values()}
    if unknown := sorted(names - known):
        raise Refused(f"no block '{unknown[0]}' to keep in floating point: the graph has {', '.join(sorted(known))}")


_RESIDUAL = "residual"


def weight_of(node: ir.Node) -> ir.Value | None:
    """Return the initializer behind a node's second input, also through a DequantizeLinear; None if there is none."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    producer = weight.producer() if weight is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        weight = producer.inputs[0]
    if weight is None or not weight.is_initializer() or weight.shape is None or len(weight.shape) < 2:
        return None
    return weight


def _ends(start: ir.Node, majors: set[ir.Node]) -> set[ir.Node | str]:
    """Return where a node's output leads to first: weights, attentions, a residual sum, graph outputs by name."""
    found: set[ir.Node | str] = set()
    reached: set[ir.Value] = {start.outputs[0]}
    # Sums are judged when everything else is reached: rotary embedding adds two values of the same origin.
    sums: list[ir.Node] = []
    work = [start.outputs[0]]
    while work:
        for value in _flood(work, reached, majors, found, sums):
            if value.is_graph_output():
                found.add(str(value.name))
        work = []
        for node in dict.fromkeys(sums):
            if all(value in reached for value in _streams(node)) and node.outputs[0] not in reached:
                reached.add(node.outputs[0])
                work.append(node.outputs[0])
    if any(node.outputs[0] not in reached for node in sums):
        found.add(_RESIDUAL)
    return found


def _flood(
    work: list[ir.Value],
    reached: set[ir.Value],
    majors: set[ir.Node],
    found: set[ir.Node | str],
    sums: list[ir.Node],
) -> Iterator[ir.Value]:
    """Go forward from some values up to weights, attentions and sums of two streams; yield what is passed."""
    work = list(work)
    while work:
        value = work.pop()
        yield value
        for node, _ in value.uses():
            if SCORE in node.metadata_props:
                continue
            if node in majors:
                found.add(node)
            elif node.op_type == "Add" and len(_streams(node)) == 2:
                sums.append(node)
            else:
                # The scale that it computes goes around the product: only the integers lead into it.
                outputs = node.outputs[:1] if node.op_type == "DynamicQuantizeLinear" else node.outputs
                fresh = [output for output in outputs if output not in reached]
                reached.update(fresh)
                work.extend(fresh)


def _streams(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None and not value.is_initializer()]


def _fed_by_attention(node: ir.Node, majors: set[ir.Node]) -> bool:
    """Say whether the nearest weight or attention before a node is an attention."""
    work, seen = [node.inputs[0]], set()
    while work:
        value = work.pop()
        producer = value.producer() if value is not None else None
        if producer is None or producer in seen:
            continue
        seen.add(producer)
        if producer.op_type in ATTENTIONS:
            return True
        if producer not in majors:
            work.extend(producer.inputs[:1])
    return False
