"""Which family's vision side is which: the registry of the towers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from lmmprune.compiler.verify.reference import clip, qwen
from lmmprune.compiler.verify.reference.cut import CutRefused
from lmmprune.compiler.verify.reference.tower import Tower

_OF_ONE_SIZE: dict[str, Callable[[Any], Tower]] = {
    "llava": clip.llava,
    "llava_next": clip.anyres,
    "llava_onevision": clip.onevision,
    "idefics3": clip.idefics3,
    "smolvlm": clip.idefics3,
    "internvl": clip.internvl,
}
_OF_ANY_SIZE: dict[str, Callable[[Any, tuple[int, int]], Tower]] = {
    "qwen2_vl": qwen.qwen2_vl,
    "qwen2_5_vl": qwen.qwen2_5_vl,
    "qwen3_vl": qwen.qwen3_vl,
}


def tower_of(model: Any, size: tuple[int, int]) -> Tower:
    """Return the tower of a loaded model for pictures of a height and width in pixels.

    Raises:
        CutRefused: The reference doesn't know the family.
    """
    kind = model.config.model_type
    if kind in _OF_ONE_SIZE:
        return _OF_ONE_SIZE[kind](model)
    if kind in _OF_ANY_SIZE:
        seen, config = _OF_ANY_SIZE[kind](model, size), model.config
        frames = config.vision_config.temporal_patch_size if getattr(config, "video_frames", None) else 1
        return dataclasses.replace(seen, views=getattr(config, "pictures_together", 1), frames=frames)
    raise CutRefused(f"it has no tower of '{kind}', only of {', '.join([*_OF_ONE_SIZE, *_OF_ANY_SIZE])}")
