"""The stages of an answer that a plan times: which engine, which profile, which sizes, which input values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.build.profiles import Profile, Shape
from lmmprune.compiler.bundle.bundle import TOKENIZER, Bundle
from lmmprune.compiler.bundle.interface import SELECTION
from lmmprune.compiler.bundle.manifest import Graph, Manifest, Tensor
from lmmprune.compiler.runtime.encoded import with_image_tokens, with_one_picture
from lmmprune.compiler.runtime.prompt import Prompter
from lmmprune.errors import InputError
from lmmprune.names import INPUT_IDS, POSITION_IDS

QUESTION = "What is shown in this picture? Describe it in one sentence."
VISION, BUCKET, SELECT, PREFILL, DECODE = "vision", "bucket", "selection", "prefill", "decode"


@dataclass(frozen=True, kw_only=True)
class BuildStep:
    """One step of an answer as it is timed.

    Attributes:
        name: ``vision``, ``bucket``, ``selection``, ``prefill`` or ``decode``.
        component: The engine that computes it.
        profile: Number of the engine's optimisation profile.
        shapes: Sizes of the inputs that are dynamic.
        inputs: Values of the integer inputs; floating-point ones may be anything.
    """

    name: str
    component: str
    profile: int
    shapes: Mapping[str, Shape]
    inputs: Mapping[str, NDArray[np.int64]]


def stages_of(bundle: Bundle, profiles: Mapping[str, list[Profile]], question: str = QUESTION) -> tuple[BuildStep, ...]:
    """Return the stages of answering a question: the picture, or a tile of it, the prompt, one further token behind it.

    Integer inputs are the real ones: a random token number would read outside of the embedding table.

    Args:
        bundle: The bundle.
        profiles: Component -> its optimisation profiles.
        question: The question.

    Raises:
        InputError: The question doesn't fit into the profile of the prefill.
    """
    manifest = bundle.manifest
    if manifest.batch is not None:
        said = f"plans measure one question at a time, '{bundle.path}' takes {manifest.rows} at once"
        raise InputError(f"{said}: export without --batch")
    stages = [BuildStep(name=VISION, component="vision", profile=0, shapes={}, inputs={})]
    if manifest.buckets:
        largest = manifest.buckets[-1]
        patches = next(tensor for tensor in largest.graph.inputs if np.issubdtype(np.dtype(tensor.dtype), np.integer))
        ranking = np.arange(int(patches.shape[-1]), dtype=np.int64)[None]
        stages.append(
            BuildStep(
                name=BUCKET,
                component=largest.component,
                profile=0,
                shapes={},
                inputs={patches.name: ranking},
            )
        )
    prompter = Prompter(manifest, bundle.file(TOKENIZER))
    # How many of a joint choice are of which picture makes no difference to any shape.
    shares = np.array_split(np.arange(manifest.vision_tokens), manifest.images if manifest.joint else 1)
    # With tiles, of the largest grid.
    counts = None if manifest.tile_grids else [len(share) for share in shares]
    if manifest.video is not None and not manifest.joint:
        last = manifest.vision_tokens
        counts = [*[last - manifest.video.newline] * (manifest.images - 1), last]
    encoded = prompter.encode(question, image_tokens=counts)
    if manifest.selection is not None:
        # It sees one picture, or one tile, with the text of the whole prompt.
        asked = with_one_picture(encoded, 0, manifest.prefix)
        stages.append(
            BuildStep(
                name=SELECT,
                component=SELECTION,
                profile=0,
                shapes={INPUT_IDS: (1, asked.length)},
                inputs={INPUT_IDS: asked.input_ids},
            )
        )
        encoded = with_image_tokens(encoded, manifest.image_tokens)
    (low, _, high) = profiles["decoder"][0].shapes[INPUT_IDS]
    if not low[1] <= encoded.length <= high[1]:
        raise InputError(
            f"the question makes a prompt of {encoded.length} tokens, the prefill takes {low[1]} to {high[1]}: give "
            "another --prompt or --max-prompt"
        )
    ids, positions = encoded.input_ids, prompter.positions(encoded, None)
    stages += [
        _decoder(manifest, PREFILL, 0, 0, {INPUT_IDS: ids, POSITION_IDS: positions}),
        _decoder(manifest, DECODE, 1, encoded.length, {INPUT_IDS: ids[:, -1:], POSITION_IDS: positions[..., -1:] + 1}),
    ]
    return tuple(stages)


def _decoder(manifest: Manifest, name: str, profile: int, past: int, inputs: dict[str, NDArray[np.int64]]) -> BuildStep:
    offsets = zip(manifest.cache.past, manifest.cache.length_offsets, strict=True)
    # Behind cuts inside the decoder the caches are shorter; before the first token, all are empty.
    lengths = {cache: past + offset if past else 0 for pair, offset in offsets for cache in pair}
    sizes = {"seq": inputs[INPUT_IDS].shape[1], "image_tokens": manifest.image_tokens}
    shapes = {
        # What isn't named so is the length of that cache: behind cuts, "past_12".
        tensor.name: tuple(
            size if isinstance(size, int) else sizes[size] if size in sizes else lengths[tensor.name]
            for size in tensor.shape
        )
        for tensor in _dynamic(manifest.decoder)
    }
    if manifest.cache.length is not None:
        inputs = {**inputs, manifest.cache.length: np.array([past], np.int64)}
    return BuildStep(name=name, component="decoder", profile=profile, shapes=shapes, inputs=inputs)


def _dynamic(graph: Graph) -> list[Tensor]:
    return [tensor for tensor in graph.inputs if any(isinstance(size, str) for size in tensor.shape)]
