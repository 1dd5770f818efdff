"""What the manifest says of a bundle's schedule and cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lmmprune.compiler.bundle.manifest import Cache, ScheduledSite
from lmmprune.models.source import Source

if TYPE_CHECKING:
    import onnx_ir as ir

    from lmmprune.passes.reduce.stage import Stage as PruningStage


def largest_of(heads: Mapping[int, ir.Model], tokens: int) -> tuple[ScheduledSite, ...]:
    """Return the schedule of heads of which the largest keeps every token."""
    return (ScheduledSite(site="vision_output", tokens_in=tokens, tokens_out=tokens),) if heads else ()


def schedule_of(stages: Sequence[PruningStage], tokens: int) -> tuple[ScheduledSite, ...]:
    """Return the stages as the manifest lists them: tokens in, tokens out."""
    rows = []
    for stage in stages:
        rows.append(
            ScheduledSite(site=str(stage.site), tokens_in=tokens, tokens_out=stage.keep, text_removed=stage.prune_text)
        )
        tokens = stage.keep
    return tuple(rows)


def cache_of(source: Source, removed: Sequence[int]) -> Cache:
    """Return the layout of the key/value cache, with the tokens that are gone before each layer."""
    from lmmprune.models.trace import cache_names

    spec = source.decoder
    past, present = cache_names(spec.layers)
    return Cache(
        past=tuple(past),
        present=tuple(present),
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        length_offsets=tuple(-count for count in removed),
    )
