"""What a method's schedule depends on, read off a model."""

from __future__ import annotations

from lmmprune.facts import Facts
from lmmprune.models.source import Source


def facts_of(source: Source, *, decoder_layers: int | None = None) -> Facts:
    """Return the numbers of a model that schedules depend on.

    Args:
        source: The model.
        decoder_layers: L, where another depth than the model's shall be planned for.
    """
    vision = source.vision
    return Facts(
        tokens=vision.tokens,
        grid=vision.grid,
        encoder_layers=vision.layers,
        decoder_layers=decoder_layers or source.decoder.layers,
        has_cls=vision.has_cls,
        merge=vision.merge,
        has_next_layer=vision.has_next_layer,
        tiles=vision.tiles,
        separators=vision.separators,
    )
