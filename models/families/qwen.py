"""What the Qwen-VL families state alike: the prompt, and the tokens of a picture whose size the export fixes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lmmprune.errors import ModelError
from lmmprune.models.configure import pictures_together
from lmmprune.models.families import llava
from lmmprune.models.family import DecoderSpec, VisionSpec
from lmmprune.models.video import VideoSpec, sees_video

IMAGE_TOKEN = "<|image_pad|>"
INLINE = "<|vision_start|><|image_pad|><|vision_end|>"
# For checkpoints that bring no chat template of their own.
TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    f"{INLINE}{{prompt}}<|im_end|>\n<|im_start|>assistant\n"
)
# All views of a video lie in one grid.
VIDEO = VideoSpec(token="<|video_pad|>", patch=2, together=True)
SIZES = "pictures of the sizes that --image-size chooses at export, frames of one of them"
# Visual tokens along each side of a picture when nothing else is said.
_SIDE = 16


def vision_spec(config: Any, *, window: int = 1) -> VisionSpec:
    """Return the tower's numbers for pictures of one size.

    Args:
        config: The whole configuration; ``vision_config.image_size``, where there is one, fixes the size.
        window: Patches along each side of an attention window, which must tile the picture.

    Raises:
        ModelError: The patches aren't square, or the size doesn't hold a whole number of windows and tokens.
    """
    vision = config.vision_config
    patch, merge = vision.patch_size, vision.spatial_merge_size
    for name in ("patch_size", "temporal_patch_size"):
        if not isinstance(getattr(vision, name), int):
            raise ModelError(f"{name} is {getattr(vision, name)}: expected one number")
    unit = math.lcm(merge, window) * patch
    size = getattr(vision, "image_size", None) or max(round(_SIDE * merge * patch / unit), 1) * unit
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if min(height, width) < unit or height % unit or width % unit:
        high, wide = (max(round(side / unit), 1) * unit for side in (height, width))
        raise ModelError(
            f"pictures of {height} x {width} pixels: this tower works in squares of {unit} pixels; give multiples of"
            f" it, the nearest are {high} x {wide}"
        )
    grid = height // (patch * merge), width // (patch * merge)
    together = pictures_together(config)
    return VisionSpec(
        layers=vision.depth,
        tokens=together * grid[0] * grid[1],
        tiles=together,
        frames=vision.temporal_patch_size if sees_video(config) else 1,
        has_cls=False,
        grid=grid,
        image_size=(height, width),
        any_size=True,
        merge=merge,
        has_next_layer=False,
    )


def decoder_spec(config: Any) -> DecoderSpec:
    """Return the numbers of a decoder whose frequencies are dealt out in stretches, as before Qwen3-VL."""
    # The frame's number turns the first frequencies, the row's the next, the column's the last.
    sections = enumerate(config.text_config.rope_parameters["mrope_section"])
    rows = tuple(row for row, count in sections for _ in range(count))
    return dataclasses.replace(llava.decoder_spec(config), rotary_rows=rows)
