"""From a model to its two canonical graphs, weights still on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from lmmprune.errors import below
from lmmprune.models import trace_cache
from lmmprune.models.quantized.packed_weight import Dequantized, PackedWeight
from lmmprune.models.source import Source


@dataclass(frozen=True, kw_only=True)
class Canonical:
    """The canonical graphs of a model (opset 23, float32); passes change them in place.

    ``remarks`` is what the user should know of how the weights were understood, one line each. ``packed`` are the
    weights that the checkpoint holds in integers, by the module's names; the graphs have what they are worth.
    """

    vision: ir.Model
    decoder: ir.Model
    remarks: tuple[str, ...] = ()
    packed: Mapping[str, PackedWeight] = field(default_factory=dict)

    def clone(self) -> Canonical:
        """Return a copy to change; its weights are the same readers."""
        return dataclasses.replace(self, vision=self.vision.clone(), decoder=self.decoder.clone())


def canonical_graphs(source: Source, *, image_token_id: int, next_layer: bool = False, cache: bool = True) -> Canonical:
    """Trace both components under fake tensors and bring them into canonical form, or take what an earlier trace left.

    Args:
        source: The model.
        image_token_id: Id of the image placeholder.
        next_layer: Whether the vision graph shall go on one layer behind the features, if the tower has one.
        cache: Whether to take what an earlier trace left, and to leave it for later ones.
    """
    graphs, remarks, packed = _traced(source, _PARTS, image_token_id=image_token_id, next_layer=next_layer, cache=cache)
    return Canonical(**graphs, remarks=remarks, packed=packed)


def canonical_vision(source: Source, *, image_token_id: int, next_layer: bool = False, cache: bool = True) -> ir.Model:
    """Return the vision graph alone, as ``canonical_graphs``: for further sizes of pictures behind one decoder."""
    found, _, _ = _traced(source, _PARTS[:1], image_token_id=image_token_id, next_layer=next_layer, cache=cache)
    return found["vision"]


_PARTS = ("vision", "decoder")


def _traced(
    source: Source, parts: Sequence[str], *, image_token_id: int, next_layer: bool, cache: bool
) -> tuple[dict[str, ir.Model], tuple[str, ...], dict[str, PackedWeight]]:
    from lmmprune.models import trace
    from lmmprune.models.canonicalize import canonicalize

    remarks: list[str] = []
    model = trace.fake_model(source, remarks.append)
    readers = source.readers(model)
    next_layer = next_layer and source.vision.has_next_layer
    # Each part by what it depends on: how far the tower is traced makes no other decoder.
    keys = {
        "vision": trace_cache.key_of(source, model, next_layer=next_layer),
        "decoder": trace_cache.key_of(source, model, image_token_id=image_token_id),
    }
    make: dict[str, Callable[[], ir.Model]] = {
        "vision": lambda: trace.trace_vision(model, source, next_layer=next_layer),
        "decoder": lambda: trace.trace_decoder(model, source, image_token_id=image_token_id),
    }
    graphs = {}
    for name in parts:
        packed = trace_cache.load(keys[name], name) if cache else None
        if packed is None:
            graph = make[name]()
            trace.bind(graph, readers)
            with below(
                "bringing the traced graph into canonical form", "please report it with the model's config.json"
            ):
                canonicalize(graph)
            packed = trace_cache.pack(graph)
            if cache:
                trace_cache.save(keys[name], name, packed)
        # A fresh graph goes the same way: what comes of it doesn't depend on the cache.
        graphs[name], origins = trace_cache.unpack(packed)
        trace.bind_again(graphs[name], origins, readers)
    packed_weights = {name: read.packed for name, read in readers.items() if isinstance(read, Dequantized)}
    return graphs, tuple(remarks), packed_weights
