"""Qwen2.5-VL: ViT with windows and a few layers of full attention, 2x2 merger, Qwen2 decoder with M-RoPE.

Reference: Bai et al., Qwen2.5-VL Technical Report, 2025, arXiv 2502.13923.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lmmprune.models.families import qwen
from lmmprune.models.families.llava import shrink
from lmmprune.models.family import GROUPED, NO_CLS, Family, VisionSpec


def _vision(config: Any) -> VisionSpec:
    return qwen.vision_spec(config, window=_window(config.vision_config))


def _window(vision: Any) -> int:
    """Return the patches along each side of a window: whole tokens only."""
    merge: int = vision.spatial_merge_size
    tokens: int = vision.window_size // (merge * vision.patch_size)
    return tokens * merge


def _features(model: Any, pixel_values: Any, next_layer: bool) -> Any:
    from lmmprune.models.families import qwen_tower

    spec, tower, vision = _vision(model.config), model.model.visual, model.config.vision_config
    merge = vision.spatial_merge_size
    rows, columns = spec.grid[0] * merge, spec.grid[1] * merge
    angles = qwen_tower.rotary_angles(vision, rows, columns)
    order = qwen_tower.Windows(rows, columns, _window(vision))
    x, windowed = qwen_tower.embed(tower, pixel_values, frames=spec.frames), False
    batch = x.shape[0]
    whole = qwen_tower.turns(angles, batch=batch)
    within = qwen_tower.turns(angles[order.places], batch=batch, parts=order.count)
    for index, layer in enumerate(tower.blocks):
        # Layers that see the whole picture see it in raster order, where methods look for patches.
        if (index not in vision.fullatt_block_indexes) != windowed:
            windowed = not windowed
            x = order.enter(x) if windowed else order.leave(x)
        x = qwen_tower.block(layer, x, within if windowed else whole)
    x = order.leave(x) if windowed else x
    # The norm is each patch's own, so it may come before the patches are put together.
    tokens = qwen_tower.group(tower.merger.ln_q(x), spec.grid, merge)
    return tower.merger.mlp(qwen_tower.together(tokens, spec.tiles))


FAMILY = Family(
    name="qwen2_5_vl",
    title="Qwen2.5-VL",
    template=qwen.TEMPLATE,
    image_token=qwen.IMAGE_TOKEN,
    inline=qwen.INLINE,
    vision=_vision,
    decoder=qwen.decoder_spec,
    shrink=shrink,
    vision_features=_features,
    reference="arXiv 2502.13923",
    tried=("Qwen/Qwen2.5-VL-3B-Instruct",),
    limits=(qwen.SIZES, GROUPED, NO_CLS),
    sizes=True,
    several=True,
    video=dataclasses.replace(qwen.VIDEO, pace=lambda config: float(config.vision_config.tokens_per_second)),
)
