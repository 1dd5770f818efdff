"""Hold what the graphs do against what the manifest promises: kept counts and cache lengths, without PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lmmprune.compiler.verify.replay import Looked, Spoken, kept_outputs

Array = np.ndarray[Any, Any]


def broken_counts(looked: Looked, spoken: Spoken) -> Iterator[str]:
    """Yield what is wrong with the tokens that leave each site of a picture."""
    manifest = looked.manifest
    if (found := looked.features.shape[1]) != manifest.image_tokens:
        yield f"image_features has {found} tokens, expected {manifest.image_tokens}"
    outputs = kept_outputs(manifest)
    stages = {stage.site: stage for stage in manifest.schedule}
    for site, name in outputs.items():
        stage = stages[site]
        kept = (spoken if stage.in_decoder else looked).kept.get(name)
        if kept is None:
            yield f"no output {name} for {site}"
        else:
            # In the decoder the places are among the tokens that entered it.
            room = manifest.image_tokens if stage.in_decoder else manifest.tokens_before
            yield from _broken_places(name, kept, stage.tokens_out, room, missing=not stage.in_decoder)
    expected = set(outputs.values())
    if manifest.buckets or any(not stages[site].in_decoder for site in outputs):
        # The places behind the last site, even where each of several sites has an output of its own.
        expected.add("kept_indices")
    if surplus := sorted({*looked.kept, *spoken.kept} - expected):
        yield f"output {surplus[0]} belongs to no site of the schedule"
    if any(stage.in_decoder for stage in manifest.schedule) and len(spoken.prefix) != manifest.prefix:
        yield f"{len(spoken.prefix)} tokens before the image, the graph was made for {manifest.prefix}"


def _broken_places(name: str, kept: Array, count: int, room: int, *, missing: bool) -> Iterator[str]:
    """Yield what is wrong with kept places ``[1,K]``; with ``missing``, -1 is a token with the place of no patch."""
    if kept.shape != (1, count):
        yield f"{name} has shape {list(kept.shape)}, expected [1, {count}]"
    places = kept[kept >= 0]
    if kept.min() < -int(missing) or kept.max() >= room or len(np.unique(places)) < places.size:
        yield f"{name} aren't distinct places in 0..{room - 1}"


def broken_lengths(looked: Looked, spoken: Spoken) -> Iterator[str]:
    """Yield which layer's cache has another length than prompt + step + ``length_offsets[l]``."""
    manifest = looked.manifest
    prompt = len(spoken.prefix) + manifest.image_tokens + len(spoken.tail)
    for step, lengths in enumerate(spoken.lengths):
        for layer, (found, offset) in enumerate(zip(lengths, manifest.cache.length_offsets, strict=True)):
            if found != (expected := prompt + step + offset):
                yield f"layer {layer} holds {found} tokens after step {step}, expected {expected}"
                return
