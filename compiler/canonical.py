"""From a model to its two canonical graphs, weights still on disk."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.models.source import Source


@dataclass(frozen=True, kw_only=True)
class Canonical:
    """The canonical graphs of a model (opset 23, float32); passes change them in place."""

    vision: ir.Model
    decoder: ir.Model


def canonical_graphs(source: Source, *, image_tokens: int, image_token_id: int) -> Canonical:
    """Trace both components under fake tensors and bring them into canonical form.

    Args:
        source: The model.
        image_tokens: Visual tokens that arrive at the decoder (K).
        image_token_id: Id of the image placeholder.
    """
    from lmmprune.models import trace
    from lmmprune.models.canonicalize import canonicalize

    model = trace.fake_model(source)
    readers = source.readers(model)
    vision = trace.trace_vision(model, source)
    decoder = trace.trace_decoder(model, source, image_tokens=image_tokens, image_token_id=image_token_id)
    for graph in (vision, decoder):
        trace.bind(graph, readers)
        canonicalize(graph)
    return Canonical(vision=vision, decoder=decoder)
