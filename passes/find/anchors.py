"""Find what a vision graph and a decoder offer to pruning: their layers, and the tokens that one hands to the other."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.names import IMAGE_FEATURES, INPUT_IDS, POSITION_IDS
from lmmprune.names import past as past_names
from lmmprune.passes.find.groups import trace_groups
from lmmprune.passes.find.layers import Layer, find_layers, stream_into
from lmmprune.passes.find.mixtures import mixtures
from lmmprune.passes.find.tokenwise import begin_of_tokenwise, streams
from lmmprune.passes.graph.refusals import Refused
from lmmprune.passes.graph.shapes import reached, static_shape


@dataclass(frozen=True, kw_only=True)
class VisionAnchors:
    """What a vision graph offers.

    Attributes:
        layers: Layers before the features, first to last, then those behind them that the graph still has.
        depth: V, the layers before the features.
        hidden: The encoder's output at the feature layer, ``[B*tiles,T,C]``, CLS included.
        patches: Tokens that enter the projector, ``[B,N,g*C]``, CLS already dropped, g patches side by side in each.
        features: What the projector hands over, ``[B,N,C']``, with DeepStack all depths side by side.
        own: What the projector makes of ``patches``: the features, or, with DeepStack, the first of those side by side.
        deeper: With DeepStack the tokens of other depths before their projectors, like ``patches``.
        has_cls: Whether the layers see a CLS token at row 0.
        tiles: Tower images per picture.
        separated: The graph's output, where tokens that are no patches are set between the features; else ``features``.
        lines: ``[N']`` int64, the output's tokens: places among the features, and N for a token that is no patch.
        pooled: Whether each token is a mixture of patches behind the projector; then ``patches`` and ``hidden`` are
            the tokens.
        members: ``[N,g]`` int64, the patches of each token (CLS not counted, those of all tiles one after the other);
            None: a picture is one image, and each token is the patch of its own number.
    """

    layers: tuple[Layer, ...]
    depth: int
    hidden: ir.Value
    patches: ir.Value
    features: ir.Value
    own: ir.Value
    deeper: tuple[ir.Value, ...]
    has_cls: bool
    tiles: int
    separated: ir.Value
    lines: np.ndarray
    members: np.ndarray | None = None
    pooled: bool = False

    @property
    def tokens(self) -> int:
        """N."""
        return static_shape(self.patches)[1]

    @property
    def separators(self) -> int:
        """Tokens of the output that are no patches."""
        return len(self.lines) - self.tokens


@dataclass(frozen=True, kw_only=True)
class DecoderAnchors:
    """What a decoder graph offers.

    Attributes:
        layers: All layers.
        embeds: The stream into layer 0.
        input_ids: ``[B,T]``.
        position_ids: ``[B,T]``, or ``[3,B,T]`` with M-RoPE.
        image_features: ``[B,N,C]``, with DeepStack several of them side by side.
        past: Every layer's cache, keys and values.
        deeper: Layer -> what DeepStack adds to the stream behind it, ``[B,T,C]``.
    """

    layers: tuple[Layer, ...]
    embeds: ir.Value
    input_ids: ir.Value
    position_ids: ir.Value
    image_features: ir.Value
    past: tuple[tuple[ir.Value, ir.Value], ...]
    deeper: Mapping[int, ir.Value]


def find_vision_anchors(model: ir.Model) -> VisionAnchors:
    """Find the anchors of a canonical vision graph.

    Raises:
        Refused: No ``Attention`` node, no ``image_features``, or no clear border between tower and projector.
    """
    layers = find_layers(model, "vision")
    separated = _named(model.graph.outputs, IMAGE_FEATURES, "vision")
    features, lines = _without_separators(separated)
    own, *others = _levels(features)
    if (mixed := mixtures(own)) is not None:
        return _pooled(layers, features, mixed, separated, lines)
    patches, deeper = begin_of_tokenwise(own), tuple(begin_of_tokenwise(value) for value in others)
    hidden, members = trace_groups(patches)
    for tokens in deeper:
        if not np.array_equal(trace_groups(tokens)[1], members):
            raise Refused(f"'{tokens.name}' has its patches in other tokens than '{patches.name}': expected the same")
    before = [layer for layer in layers if patches in set(reached([layer.node.outputs[0]]))]
    if not before:
        raise Refused(f"no Attention node lies before '{IMAGE_FEATURES}'")
    tiles = static_shape(hidden)[0] // static_shape(patches)[0]
    inside, outside = static_shape(before[-1].q)[2], members.size // tiles
    lead = inside - outside
    if members.size % tiles or lead not in (0, 1) or (members % inside).min() < lead:
        raise Refused(
            f"the tower's attention sees {inside} tokens but '{patches.name}' hands over {outside}:"
            " expected the same number, or one more for CLS at row 0"
        )
    members = members // inside * outside + members % inside - lead
    return VisionAnchors(
        layers=layers,
        depth=len(before),
        hidden=hidden,
        patches=patches,
        features=features,
        own=own,
        deeper=deeper,
        has_cls=bool(lead),
        tiles=tiles,
        separated=separated,
        lines=np.arange(len(members), dtype=np.int64) if lines is None else lines,
        members=None if tiles == 1 and np.array_equal(members[:, 0], np.arange(outside)) else members,
    )


def _pooled(
    layers: tuple[Layer, ...], features: ir.Value, mixed: ir.Value, separated: ir.Value, lines: np.ndarray | None
) -> VisionAnchors:
    """Return the anchors of a graph whose tokens are mixtures of patches."""
    batch, tokens, _ = static_shape(features)
    return VisionAnchors(
        layers=layers,
        depth=len(layers),
        hidden=features,
        patches=features,
        features=features,
        own=features,
        deeper=(),
        has_cls=False,
        tiles=static_shape(mixed)[0] // batch,
        separated=separated,
        lines=np.arange(tokens, dtype=np.int64) if lines is None else lines,
        pooled=True,
    )


def _without_separators(separated: ir.Value) -> tuple[ir.Value, np.ndarray | None]:
    """Walk from the output over the Gather that sets a separator between the features; return them and its indices."""
    node = separated.producer()
    lines = _picked(node)
    table = node.inputs[0].producer() if node is not None and node.inputs[0] is not None else None
    if lines is None or table is None or table.op_type != "Concat" or len(table.inputs) != 2:
        return separated, None
    features = table.inputs[0]
    assert features is not None
    return features, lines


def _picked(node: ir.Node | None) -> np.ndarray | None:
    """Return the constant indices of a Gather of tokens; None for any other node."""
    if node is None or node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 1:
        return None
    indices = node.inputs[1]
    return None if indices is None or indices.const_value is None else indices.const_value.numpy()


def find_decoder_anchors(model: ir.Model) -> DecoderAnchors:
    """Find the anchors of a canonical decoder graph.

    Raises:
        Refused: No ``Attention`` node, an input is missing, or a layer has no cache of its own.
    """
    layers = find_layers(model, "decoder")
    inputs = model.graph.inputs
    past = []
    for index in range(len(layers)):
        key, value = (_named(inputs, name, "decoder") for name in past_names(index))
        past.append((key, value))
    attended = set(reached([layers[0].node.outputs[0]]))
    return DecoderAnchors(
        layers=layers,
        embeds=stream_into(layers[0]),
        input_ids=_named(inputs, INPUT_IDS, "decoder"),
        position_ids=_named(inputs, POSITION_IDS, "decoder"),
        image_features=_named(inputs, IMAGE_FEATURES, "decoder"),
        past=tuple(past),
        deeper={index: value for index, layer in enumerate(layers) for value in _added(layer.out, attended)},
    )


def _added(stream: ir.Value, attended: Container[ir.Value]) -> list[ir.Value]:
    """Return what is added to a stream that no attention has seen."""
    sums = [node for node, _ in stream.uses() if node.op_type == "Add" and len(streams(node)) == 2]
    return [value for node in sums for value in streams(node) if value is not stream and value not in attended]


def _named(values: Sequence[ir.Value], name: str, what: str) -> ir.Value:
    for value in values:
        if value.name == name:
            return value
    raise Refused(f"no '{name}', found {sorted(str(v.name) for v in values)[:8]}: not a canonical {what} graph")


def _levels(features: ir.Value) -> list[ir.Value]:
    """Return the features that stand side by side in the channels: with DeepStack those of several depths."""
    node = features.producer()
    if node is None or node.op_type != "Concat" or node.attributes.get_int("axis") not in (-1, 2):
        return [features]
    return streams(node)
