"""From a model to its two canonical graphs, weights still on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.errors import below
from lmmprune.models.source import Source


@dataclass(frozen=True, kw_only=True)
class Canonical:
    """The canonical graphs of a model (opset 23, float32); passes change them in place.

    ``remarks`` is what the user should know of how the weights were understood, one line each.
    """

    vision: ir.Model
    decoder: ir.Model
    remarks: tuple[str, ...] = ()

    def clone(self) -> Canonical:
        """Return a copy to change; its weights are the same readers."""
        return dataclasses.replace(self, vision=self.vision.clone(), decoder=self.decoder.clone())


def canonical_graphs(source: Source, *, image_token_id: int, beyond: bool = False) -> Canonical:
    """Trace both components under fake tensors and bring them into canonical form.

    Args:
        source: The model.
        image_token_id: Id of the image placeholder.
        beyond: Whether the vision graph shall go on one layer behind the features, if the tower has one.
    """
    from lmmprune.models import trace
    from lmmprune.models.canonicalize import canonicalize

    remarks: list[str] = []
    model = trace.fake_model(source, remarks.append)
    readers = source.readers(model)
    vision = trace.trace_vision(model, source, beyond=beyond and source.vision.has_beyond)
    decoder = trace.trace_decoder(model, source, image_token_id=image_token_id)
    for graph in (vision, decoder):
        trace.bind(graph, readers)
        with below("bringing the traced graph into canonical form", "please report it with the model's config.json"):
            canonicalize(graph)
    return Canonical(vision=vision, decoder=decoder, remarks=tuple(remarks))


def shared_trace() -> Callable[[Source], Canonical]:
    """Return a function that traces a model once, one layer beyond its features if there is one, and gives copies.

    For many bundles of one model: a trace takes longer than all passes together.
    """
    from lmmprune.compiler.assets import image_token_id

    done: dict[tuple[str, bool, int, tuple[int, int], tuple[int, int] | None], Canonical] = {}

    def traced(source: Source) -> Canonical:
        key = (source.name, source.dummy, source.decoder.layers, source.vision.image_size, source.tiles)
        if key not in done:
            done[key] = canonical_graphs(source, image_token_id=image_token_id(source), beyond=True)
        return done[key].clone()

    return traced
