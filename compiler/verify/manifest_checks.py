"""Hold what the graphs do against what the manifest says: kept counts and cache lengths, without PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lmmprune.compiler.verify.replay import DecoderOutputs, VisionOutputs, kept_outputs

Array = np.ndarray[Any, Any]


def broken_counts(vision: VisionOutputs, decoder: DecoderOutputs, number: int = 0) -> Iterator[str]:
    """Yield what is wrong with the tokens that leave each site of a picture; ``number`` tells which of the prompt's."""
    manifest = vision.manifest
    if (found := vision.features.shape[1]) != manifest.vision_tokens:
        yield f"image_features has {found} tokens, expected {manifest.vision_tokens}"
    outputs, inside = kept_outputs(manifest), decoder.kept[number]
    stages = {stage.site: stage for stage in manifest.schedule}
    for site, name in outputs.items():
        stage = stages[site]
        kept = (inside if stage.in_decoder else vision.kept).get(name)
        if kept is None:
            yield f"no output {name} for {site}"
        else:
            # Behind the vision graph the places are among the tokens that left it.
            room = manifest.vision_tokens if stage.in_decoder else manifest.tokens_before
            yield from _broken_places(name, kept, stage.tokens_out, room, missing=not stage.in_decoder)
    # The places behind the last site have an output too where each of several sites has its own.
    expected = {*outputs.values(), manifest.kept}
    if surplus := sorted({*vision.kept, *inside} - expected):
        yield f"output {surplus[0]} belongs to no site of the schedule"
    cut = any(stage.in_decoder for stage in manifest.schedule) and manifest.vision_runs == 1
    if cut and len(decoder.prefix) != manifest.prefix:
        yield f"{len(decoder.prefix)} tokens before the image, the graph was made for {manifest.prefix}"


def _broken_places(name: str, kept: Array, count: int, room: int, *, missing: bool) -> Iterator[str]:
    """Yield what is wrong with kept places ``[1,K]``; with ``missing``, -1 is a token with the place of no patch."""
    if kept.shape != (1, count):
        yield f"{name} has shape {list(kept.shape)}, expected [1, {count}]"
    places = kept[kept >= 0]
    if kept.min() < -int(missing) or kept.max() >= room or len(np.unique(places)) < places.size:
        yield f"{name} aren't distinct places in 0..{room - 1}"


def broken_lengths(vision: VisionOutputs, decoder: DecoderOutputs) -> Iterator[str]:
    """Yield which layer's cache has another length than prompt + step + ``length_offsets[l]``.

    Args:
        vision: Of one of the prompt's pictures.
        decoder: Of the prompt.
    """
    manifest, pictures = vision.manifest, len(decoder.texts) - 1
    visual = manifest.image_tokens if manifest.joint else pictures * manifest.image_tokens
    prompt = sum(map(len, decoder.texts)) + visual
    for step, lengths in enumerate(decoder.lengths):
        for layer, (found, offset) in enumerate(zip(lengths, manifest.cache.length_offsets, strict=True)):
            if found != (expected := prompt + step + offset):
                yield f"layer {layer} holds {found} tokens after step {step}, expected {expected}"
                return
