"""Which family's vision side is which: the registry of the towers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmmprune.compiler.verify.reference import clip, qwen
from lmmprune.compiler.verify.reference.cut import CutRefused
from lmmprune.compiler.verify.reference.tower import Tower

_OF_ONE_SIZE: dict[str, Callable[[Any], Tower]] = {
    "llava": clip.llava,
    "llava_next": clip.anyres,
    "llava_onevision": clip.anyres,
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
        return _OF_ANY_SIZE[kind](model, size)
    raise CutRefused(f"it has no tower of '{kind}', only of {', '.join([*_OF_ONE_SIZE, *_OF_ANY_SIZE])}")
