"""Optimisation profiles: the range of every dynamic input, derived from the signature that the manifest states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lmmprune.compiler.bundle.manifest import Graph, Manifest
from lmmprune.compiler.targets.target import Target
from lmmprune.errors import InputError, TargetError

Range = tuple[int, int, int]
Shape = tuple[int, ...]

# Tokens of a typical question, beside the image's: what the prefill kernels are tuned for.
_QUESTION_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The shapes that one execution context serves: input -> (smallest, the one to tune for, largest)."""

    name: str
    shapes: Mapping[str, tuple[Shape, Shape, Shape]]


def vision_profiles(manifest: Manifest) -> list[Profile]:
    """Return no profile for the vision graph: every dimension is a number.

    Raises:
        TargetError: A dimension isn't a number.
    """
    for tensor in manifest.vision.inputs:
        for size in tensor.shape:
            if isinstance(size, str):
                raise TargetError(
                    f"input '{tensor.name}' of '{manifest.vision.file}' has the dynamic dimension '{size}', engines "
                    "need a static vision graph: export the bundle again"
                )
    return []


def decoder_profiles(manifest: Manifest, target: Target, max_prompt: int | None = None) -> list[Profile]:
    """Return the two profiles of the decoder, which share one engine and its weights: prefill, then decode.

    Prefill takes a whole prompt with an empty cache; decode takes one token with a cache of any length.

    Args:
        manifest: The bundle's manifest.
        target: What the engine is for.
        max_prompt: Longest prompt in tokens, the image's included (None: as many as the model has positions).

    Raises:
        InputError: The longest prompt is shorter than the image or longer than the model's positions.
        TargetError: An input has a dynamic dimension of unknown meaning.
    """
    limit, image = manifest.max_tokens, manifest.feature_rows
    # Buckets share one decoder.
    least = manifest.buckets[0].tokens if manifest.buckets else image
    longest = limit if max_prompt is None else max_prompt
    if not image < longest <= limit:
        raise InputError(
            f"--max-prompt {longest} must be more than the image's {image} tokens{several(manifest)} and at most the"
            f" model's {limit} positions"
        )
    likely = min(image + _QUESTION_TOKENS, longest)
    prompt = {"seq": (_shortest(manifest), likely, longest), "past": (0, 0, 0)}
    return [
        _profile("prefill", manifest.decoder, prompt, image, least),
        _profile("decode", manifest.decoder, {"seq": target.decode_step, "past": (1, likely, limit - 1)}, image, least),
    ]


def several(manifest: Manifest) -> str:
    """Say how many pictures a prompt may have, or tiles, where it may have more than one."""
    tiles = f" (of {manifest.vision_runs} tiles)" if manifest.tile_grids else ""
    return tiles or (f" (of {manifest.images} pictures)" if manifest.images > 1 else "")


def selection_profiles(manifest: Manifest, max_prompt: int | None = None) -> list[Profile]:
    """Return the one profile of the selection, which takes a whole prompt with all tokens of the picture.

    Args:
        manifest: The bundle's manifest.
        max_prompt: As for ``decoder_profiles``: longest prompt that enters the decoder.

    Raises:
        TargetError: An input has a dynamic dimension of unknown meaning.
    """
    assert manifest.selection is not None
    least = manifest.prefix + manifest.vision_tokens + 1
    more = manifest.vision_tokens - manifest.image_tokens
    longest = (manifest.max_tokens if max_prompt is None else max_prompt) + more
    likely = min(manifest.vision_tokens + _QUESTION_TOKENS, longest)
    ranges = {"seq": (min(least, longest), max(least, likely), longest)}
    return [_profile("prompt", manifest.selection, ranges, manifest.vision_tokens, manifest.vision_tokens)]


def _shortest(manifest: Manifest) -> int:
    """Return the length from which a decoder takes a sequence for a prompt: one with cuts must see the whole image."""
    inside = manifest.decoder_sites
    return manifest.prefix + manifest.image_tokens + 1 + sum(stage.text_removed for stage in inside) if inside else 1


def _profile(name: str, graph: Graph, ranges: Mapping[str, Range], image_tokens: int, smallest: int) -> Profile:
    shapes = {}
    for tensor in graph.inputs:
        if not any(isinstance(size, str) for size in tensor.shape):
            continue
        dims: list[Range] = []
        for size in tensor.shape:
            if isinstance(size, int):
                dims.append((size, size, size))
            elif size == "image_tokens":
                dims.append((smallest, image_tokens, image_tokens))
            else:
                dims.append(_range(size, ranges, tensor.name, graph.file))
        low, likely, high = zip(*dims, strict=True)
        shapes[tensor.name] = (low, likely, high)
    return Profile(name=name, shapes=shapes)


def _range(size: str, ranges: Mapping[str, Range], tensor: str, file: str) -> Range:
    # Layers behind a cut inside the decoder have caches of other lengths: "past_12" is a "past" of its own.
    family = size.split("_")[0]
    if family not in ranges:
        raise TargetError(
            f"input '{tensor}' of '{file}' has the dynamic dimension '{size}', known are image_tokens, "
            f"{', '.join(sorted(ranges))}: export the bundle again"
        )
    return ranges[family]
