"""LLaVA-OneVision: a SigLIP tower without CLS, features of its last layer, pictures cut into tiles, Qwen2 decoder.

Reference: Li et al., LLaVA-OneVision: Easy Visual Task Transfer, 2024, arXiv 2408.03326.
"""

from __future__ import annotations

from typing import Any

from lmmprune.errors import ModelError
from lmmprune.models.families import anyres, llava, pooled
from lmmprune.models.family import NO_CLS, Family, VisionSpec
from lmmprune.models.video import VideoSpec, sees_video

# Up to this stretch of its sides a picture's raster stays as it is.
_SLACK = 1.1


def _arrange(config: Any, tiles: tuple[int, int] | None) -> tuple[Any, tuple[int, int]]:
    """Fix the grid; one so large that the raster of patches would be scaled down is refused."""
    config, (rows, columns) = anyres.arrange(config, tiles)
    most = _most(config)
    if rows * columns > _SLACK**2 * most:
        raise ModelError(
            f"--tiles {rows}x{columns}: the model scales more than {most} tiles down behind the projector, which isn't"
            f" supported; give at most {most} tiles"
        )
    return config, (rows, columns)


def _vision(config: Any) -> VisionSpec:
    return pooled.vision_spec(config) if sees_video(config) else anyres.vision_spec(config)


def _features(model: Any, pixel_values: Any, next_layer: bool) -> Any:
    seen = pooled if sees_video(model.config) else anyres
    return seen.features(model, pixel_values, next_layer)


def _grids(config: Any) -> tuple[tuple[int, int], ...]:
    most = _SLACK**2 * _most(config)
    return tuple(grid for grid in anyres.grids_of(config) if grid[0] * grid[1] <= most)


def _most(config: Any) -> int:
    return int(config.vision_aspect_ratio.removeprefix("anyres_max_"))


FAMILY = Family(
    name="llava_onevision",
    title="LLaVA-OneVision",
    template="<|im_start|>user <image>\n{prompt}<|im_end|><|im_start|>assistant\n",
    image_token="<image>",
    vision=_vision,
    decoder=llava.decoder_spec,
    shrink=llava.shrink,
    vision_features=_features,
    reference="arXiv 2408.03326",
    one_picture=anyres.ONE_PICTURE,
    tried=("llava-hf/llava-onevision-qwen2-0.5b-ov-hf",),
    limits=(
        *anyres.LIMITS,
        NO_CLS,
        "videos are cut behind the projector and the pooling alone (evs, divprune, dpp)",
    ),
    video=VideoSpec(token="<video>", newline=True),
    arrange=_arrange,
    grids=_grids,
)
