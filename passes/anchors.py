"""Find the places of a vision graph that pruning needs: its attention layers and the tokens it hands over."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.passes.refusals import Refused
from lmmprune.passes.shapes import static_shape


@dataclass(frozen=True, kw_only=True)
class AttentionLayer:
    """One ``Attention`` node: ``q``, ``k`` of shape ``[B,H,T,D]`` and the factor on the logits."""

    node: ir.Node
    q: ir.Value
    k: ir.Value
    scale: float

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """B, H, T, D."""
        batch, heads, tokens, width = static_shape(self.q)
        return batch, heads, tokens, width


@dataclass(frozen=True, kw_only=True)
class VisionAnchors:
    """What a vision graph offers.

    Attributes:
        layers: Attention layers, first to last.
        patches: Tokens that enter the projector, ``[B,N,C]``, CLS already dropped.
        has_cls: Whether the layers see a CLS token at row 0.
    """

    layers: tuple[AttentionLayer, ...]
    patches: ir.Value
    has_cls: bool

    @property
    def tokens(self) -> int:
        """N."""
        return static_shape(self.patches)[1]


def find_vision_anchors(model: ir.Model) -> VisionAnchors:
    """Find the anchors of a canonical vision graph.

    Raises:
        Refused: No ``Attention`` node, no ``image_features``, or no clear border between tower and projector.
    """
    layers = tuple(_layer(node) for node in model.graph if node.op_type == "Attention" and node.domain == "")
    if not layers:
        raise Refused("no Attention node in the vision graph: export at opset 23, or use a family that is listed")
    patches = _patches(model)
    inside = layers[-1].sizes[2]
    outside = static_shape(patches)[1]
    if inside - outside not in (0, 1):
        raise Refused(
            f"the tower's attention sees {inside} tokens but '{patches.name}' hands over {outside}:"
            " expected the same number, or one more for CLS"
        )
    return VisionAnchors(layers=layers, patches=patches, has_cls=inside == outside + 1)


def _layer(node: ir.Node) -> AttentionLayer:
    q, k = node.inputs[0], node.inputs[1]
    if q is None or k is None or q.shape is None or len(q.shape) != 4:
        raise Refused(f"'{node.name}' has queries of shape {q and q.shape}, expected [B,H,T,D]")
    width = static_shape(q)[3]
    scale = node.attributes.get_float("scale", width**-0.5)
    return AttentionLayer(node=node, q=q, k=k, scale=scale)


# Operators that treat each token by itself: walking back through them stays within the projector.
_TOKENWISE = {"MatMul", "Add", "Gelu", "Mul", "Sigmoid", "LayerNormalization", "RMSNormalization", "Erf", "Div"}


def _patches(model: ir.Model) -> ir.Value:
    """Walk from ``image_features`` back through the projector to the value that drops CLS, or to the tower's end."""
    outputs = {value.name: value for value in model.graph.outputs}
    if "image_features" not in outputs:
        raise Refused(f"no output 'image_features', found {sorted(map(str, outputs))}: not a canonical vision graph")
    value = outputs["image_features"]
    while True:
        node = value.producer()
        if node is None:
            raise Refused("no attention before 'image_features': the projector's input could not be found")
        if node.op_type == "Slice":
            return value
        if node.op_type not in _TOKENWISE:
            raise Refused(
                f"'{node.name}' ({node.op_type}) lies between the tower and 'image_features':"
                " expected token-wise operators, then the Slice that drops CLS"
            )
        # A residual sum has two token inputs: that is the tower's last layer, and it has no CLS to drop.
        streams = [entry for entry in node.inputs if entry is not None and not entry.is_initializer()]
        if len(streams) > 1 and node.op_type == "Add":
            return value
        value = streams[0]
