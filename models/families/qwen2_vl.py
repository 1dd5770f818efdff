"""Qwen2-VL: ViT with full attention and axial rotations, 2x2 merger, Qwen2 decoder with M-RoPE.

Reference: Wang et al., Qwen2-VL, 2024, arXiv 2409.12191.
"""

from __future__ import annotations

from typing import Any

from lmmprune.models.families import qwen
from lmmprune.models.families.llava import shrink
from lmmprune.models.family import GROUPED, NO_CLS, Family


def _features(model: Any, pixel_values: Any, next_layer: bool) -> Any:
    from lmmprune.models.families import qwen_tower

    spec, tower, vision = qwen.vision_spec(model.config), model.model.visual, model.config.vision_config
    merge = vision.spatial_merge_size
    angles = qwen_tower.rotary_angles(vision, spec.grid[0] * merge, spec.grid[1] * merge)
    x = qwen_tower.embed(tower, pixel_values, frames=spec.frames)
    turns = qwen_tower.turns(angles, batch=x.shape[0])
    for layer in tower.blocks:
        x = qwen_tower.block(layer, x, turns)
    # The norm is each patch's own, so it may come before the patches are put together.
    tokens = qwen_tower.group(tower.merger.ln_q(x), spec.grid, merge)
    return tower.merger.mlp(qwen_tower.together(tokens, spec.tiles))


FAMILY = Family(
    name="qwen2_vl",
    title="Qwen2-VL",
    template=qwen.TEMPLATE,
    image_token=qwen.IMAGE_TOKEN,
    inline=qwen.INLINE,
    vision=qwen.vision_spec,
    decoder=qwen.decoder_spec,
    shrink=shrink,
    vision_features=_features,
    reference="arXiv 2409.12191",
    tried=("Qwen/Qwen2-VL-2B-Instruct",),
    limits=(qwen.SIZES, GROUPED, NO_CLS),
    sizes=True,
    several=True,
    video=qwen.VIDEO,
)
