"""Small random LLaVA models of many shapes, each traced once per session: what the graph passes are tried on."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from random_llava import IMAGE_TOKEN, random_llava

from lmmprune.facts import Facts
from lmmprune.models import trace, trace_cache
from lmmprune.models.canonicalize import canonicalize
from lmmprune.models.source import resolve

_ROOT = tempfile.TemporaryDirectory(prefix="lmmprune-models-")


@dataclass(frozen=True)
class Shape:
    """The sizes of one model; ``vision_layers`` counts the whole tower, one more than lie before the features."""

    seed: int
    has_cls: bool
    grid: int
    vision_layers: int
    vision_heads: int
    vision_head_dim: int
    llm_layers: int
    heads: int
    kv_heads: int
    head_dim: int
    batch: int

    @property
    def facts(self) -> Facts:
        return Facts(
            tokens=self.grid**2,
            grid=(self.grid, self.grid),
            encoder_layers=self.vision_layers - 1,
            decoder_layers=self.llm_layers,
            has_cls=self.has_cls,
        )


SHAPES = (
    Shape(0, True, 4, 3, 2, 4, 3, 2, 2, 4, 1),
    Shape(1, True, 3, 4, 1, 5, 3, 4, 2, 6, 2),
    Shape(2, False, 4, 3, 3, 3, 3, 3, 1, 4, 1),
    Shape(3, True, 5, 5, 2, 7, 4, 6, 3, 2, 3),
    Shape(4, True, 6, 4, 3, 4, 5, 4, 1, 8, 1),
    Shape(5, False, 5, 4, 2, 5, 4, 4, 4, 6, 4),
    Shape(6, True, 7, 3, 4, 2, 3, 2, 1, 10, 1),
    Shape(7, True, 4, 6, 1, 8, 6, 5, 5, 4, 4),
)


@functools.cache
def torch_model(shape: Shape) -> Any:
    sizes = {name: value for name, value in vars(shape).items() if name not in ("seed", "batch")}
    return random_llava(shape.seed, **sizes)


@functools.cache
def canonical(shape: Shape) -> tuple[ir.Model, ir.Model]:
    """Return the canonical vision graph, one layer beyond its features, and the decoder; clone them."""
    folder = Path(_ROOT.name) / str(shape.seed)
    torch_model(shape).save_pretrained(folder)
    source = resolve(str(folder))
    model = trace.fake_model(source)
    readers = source.readers(model)

    def graph(name: str, traced: Callable[[], ir.Model]) -> ir.Model:
        # Every process of a session takes what the first one traced.
        packed = trace_cache.load(f"random-{shape.seed}", name)
        if packed is None:
            fresh = traced()
            trace.bind(fresh, readers)
            canonicalize(fresh)
            packed = trace_cache.pack(fresh)
            trace_cache.save(f"random-{shape.seed}", name, packed)
        found, origins = trace_cache.unpack(packed)
        trace.bind_again(found, origins, readers)
        return found

    return (
        graph("vision", lambda: trace.trace_vision(model, source, batch=shape.batch, next_layer=True)),
        graph("decoder", lambda: trace.trace_decoder(model, source, image_token_id=IMAGE_TOKEN)),
    )
