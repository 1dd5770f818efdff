"""What the signatures in a manifest must say, so that its graphs fit each other and the rest of the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmmprune.compiler.bundle.interface import SELECTION, VALUE_BYTES, Tensor
from lmmprune.compiler.bundle.views import seen_as
from lmmprune.names import (
    DYNAMIC_COUNT,
    IMAGE_FEATURES,
    INPUT_IDS,
    LOGITS,
    PADDING,
    PATCHES,
    PIXEL_VALUES,
    POSITION_IDS,
    RANKING,
    SELECTED,
)

if TYPE_CHECKING:
    from lmmprune.compiler.bundle.interface import Interface

Dim = int | str | None  # None: whatever it is
_FLOATS = tuple(VALUE_BYTES)
_INTEGERS = ("int64",)


def check_signatures(interface: Interface) -> None:
    """Hold inputs and outputs of every graph against the rest of what is said.

    Raises:
        ValueError: They don't fit; one line that names the tensor.
    """
    features = _check_vision(interface)
    for view in interface.sizes:
        seen = seen_as(interface, view)
        left = _check_selection(seen, _check_vision(seen))
        if (left.shape[2], left.dtype) != (features.shape[2], features.dtype):
            found = f"{left.dtype} {list(left.shape)}"
            raise ValueError(
                f"{view.component} leaves features {found}: expected {features.dtype}, {features.shape[2]}"
            )
        _check_sites(seen)
    _check_decoder(interface, _check_selection(interface, features))
    _check_sites(interface)


@dataclass(frozen=True)
class _Side:
    """The inputs or the outputs of a graph."""

    field: str
    tensors: Sequence[Tensor]

    def only(self, *names: str) -> None:
        """Refuse other tensors than these."""
        found = {tensor.name for tensor in self.tensors}
        if differ := sorted(found ^ {*names}):
            what = "is fed by nothing" if differ[0] in found else "is missing"
            some = ", ".join(names[:4]) + ", ..." * (len(names) > 4)
            raise ValueError(f"{self.field} '{differ[0]}' {what}: expected {some}")

    def tensor(self, name: str, *shape: Dim, types: Sequence[str] = _FLOATS) -> Tensor:
        """Return a tensor that must be there, of this shape and one of these types."""
        found = next((tensor for tensor in self.tensors if tensor.name == name), None)
        if found is None:
            raise ValueError(f"{self.field} has no '{name}'")
        pairs = zip(found.shape, shape, strict=False)
        if len(found.shape) != len(shape) or not all(want in (None, dim) for dim, want in pairs):
            wanted = ", ".join("any" if dim is None else str(dim) for dim in shape)
            raise ValueError(f"{self.field} '{name}' has the shape {list(found.shape)}: expected [{wanted}]")
        if found.dtype not in types:
            raise ValueError(f"{self.field} '{name}' is {found.dtype}: expected {' or '.join(types)}")
        return found

    def integers(self, name: str, *shape: Dim) -> Tensor:
        """Return such a tensor of whole numbers."""
        return self.tensor(name, *shape, types=_INTEGERS)

    def same(self, expected: Tensor) -> None:
        """Refuse a tensor that isn't as another graph makes it."""
        self.tensor(expected.name, *expected.shape, types=(expected.dtype,))


def _check_vision(interface: Interface) -> Tensor:
    """Check the graphs before the decoder; return the features that one of them hands to it."""
    inputs, outputs = _Side("vision.inputs", interface.vision.inputs), _Side("vision.outputs", interface.vision.outputs)
    inputs.only(PIXEL_VALUES)
    rows, columns = interface.tiles or (0, 0)
    seen = interface.images if interface.joint else interface.rows * (1 + rows * columns)
    seen *= interface.video.patch if interface.video is not None else 1
    pixels = inputs.tensor(PIXEL_VALUES, seen, 3, None, None)
    if not all(isinstance(dim, int) for dim in pixels.shape):
        raise ValueError(f"vision.inputs '{PIXEL_VALUES}' has the shape {list(pixels.shape)}: expected numbers")
    if not interface.buckets:
        return outputs.tensor(IMAGE_FEATURES, interface.rows, interface.vision_tokens, None)
    patches = outputs.tensor(PATCHES, None, None, None)
    ranking = outputs.integers(RANKING, None, None)
    outputs.integers(DYNAMIC_COUNT, None)
    for bucket in interface.buckets:
        taken = _Side(f"{bucket.component}.inputs", bucket.graph.inputs)
        taken.only(PATCHES, RANKING)
        taken.same(patches)
        taken.same(ranking)
        made = _Side(f"{bucket.component}.outputs", bucket.graph.outputs)
        features = made.tensor(IMAGE_FEATURES, 1, bucket.tokens, None)
    return features


def _check_selection(interface: Interface, features: Tensor) -> Tensor:
    """Check the graph between vision and decoder, if there is one; return the features that it hands on."""
    graph = interface.selection
    if graph is None:
        return features
    inputs = _Side("selection.inputs", graph.inputs)
    inputs.only(INPUT_IDS, IMAGE_FEATURES)
    inputs.integers(INPUT_IDS, 1, None)
    # It is asked question by question.
    inputs.tensor(IMAGE_FEATURES, 1, *features.shape[1:], types=(features.dtype,))
    chosen = (1, interface.image_tokens, features.shape[2])
    return _Side("selection.outputs", graph.outputs).tensor(SELECTED, *chosen, types=(features.dtype,))


def _check_decoder(interface: Interface, features: Tensor) -> None:
    decoder, cache = interface.decoder, interface.cache
    if not len(cache.past) == len(cache.present) == len(cache.length_offsets):
        found = f"{len(cache.past)}, {len(cache.present)} and {len(cache.length_offsets)}"
        raise ValueError(f"cache.past, present and length_offsets have {found} layers: expected as many")
    if cache.capacity is not None and cache.length is None:
        raise ValueError("cache has a capacity but no length: expected both, or no capacity")
    inputs, outputs = _Side("decoder.inputs", decoder.inputs), _Side("decoder.outputs", decoder.outputs)
    lengths = [] if cache.length is None else [cache.length]
    padding = [] if interface.batch is None else [PADDING]
    pasts = (name for pair in cache.past for name in pair)
    inputs.only(INPUT_IDS, IMAGE_FEATURES, POSITION_IDS, *pasts, *lengths, *padding)
    count = interface.rows
    inputs.integers(INPUT_IDS, count, None)
    for name in padding:
        inputs.integers(name, count)
    rows = next(len(tensor.shape) for tensor in decoder.inputs if tensor.name == POSITION_IDS)
    inputs.integers(POSITION_IDS, *((3, count, None) if rows == 3 else (count, None)))
    tokens = None if interface.buckets else interface.feature_rows
    inputs.tensor(IMAGE_FEATURES, count, tokens, features.shape[2], types=(features.dtype,))
    for name in lengths:
        inputs.integers(name, 1)
    outputs.tensor(LOGITS, count, None, None)
    for past, present, offset in zip(cache.past, cache.present, cache.length_offsets, strict=True):
        room = None if cache.capacity is None else cache.capacity + offset
        for into, out in zip(past, present, strict=True):
            kept = inputs.tensor(into, count, cache.kv_heads, room, cache.head_dim)
            outputs.tensor(out, count, cache.kv_heads, room, cache.head_dim, types=(kept.dtype,))


def _check_sites(interface: Interface) -> None:
    """Check that the outputs with kept places are there."""
    behind = [(bucket.component, bucket.graph) for bucket in interface.buckets] or [("vision", interface.vision)]
    for component, graph in behind if interface.kept is not None else ():
        _Side(f"kept: {component}.outputs", graph.outputs).integers(str(interface.kept), interface.rows, None)
    for place, stage in enumerate(interface.schedule):
        component, graph = ("decoder", interface.decoder) if stage.in_decoder else behind[-1]
        count = interface.rows
        if stage.before_layers and interface.selection is not None:
            component, graph, count = SELECTION, interface.selection, 1
        if stage.kept is not None:
            _Side(f"schedule[{place}].kept: {component}.outputs", graph.outputs).integers(stage.kept, count, None)
