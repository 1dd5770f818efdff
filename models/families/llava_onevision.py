"""LLaVA-OneVision: a SigLIP tower without CLS, features of its last layer, pictures cut into tiles, Qwen2 decoder.

Reference: Li et al., LLaVA-OneVision: Easy Visual Task Transfer, 2024, arXiv 2408.03326.
"""

from __future__ import annotations

from typing import Any

from lmmprune.errors import ModelError
from lmmprune.models.families import anyres, llava
from lmmprune.models.family import NO_CLS, Family

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
    vision=anyres.vision_spec,
    decoder=llava.decoder_spec,
    shrink=llava.shrink,
    vision_features=anyres.features,
    reference="arXiv 2408.03326",
    one_picture=anyres.ONE_PICTURE,
    tried=("llava-hf/llava-onevision-qwen2-0.5b-ov-hf",),
    limits=(*anyres.LIMITS, NO_CLS, "pictures only, no videos"),
    arrange=_arrange,
    grids=_grids,
)
