"""Qwen3-VL: ViT with a resampled table of positions, 2x2 mergers at several depths (DeepStack), interleaved M-RoPE.

The features of a token at all depths travel side by side in ``image_features [B,K,(1+S)*C]``, so that whatever keeps a
token keeps all of them; the decoder adds the s-th of the S deeper ones behind its layer s.

Reference: Bai et al., Qwen3-VL Technical Report, 2025, arXiv 2511.21631; Meng et al., DeepStack, 2024,
arXiv 2406.04334.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lmmprune.models.families import qwen
from lmmprune.models.families.llava import decoder_spec, shrink
from lmmprune.models.family import GROUPED, NO_CLS, DecoderSpec, Family, VisionSpec
from lmmprune.models.video import VideoSpec


def _vision(config: Any) -> VisionSpec:
    return qwen.vision_spec(config)


def _decoder(config: Any) -> DecoderSpec:
    spec = decoder_spec(config)
    _, *counts = config.text_config.rope_parameters["mrope_section"]
    rows = [0] * (spec.head_dim // 2)
    # Every third frequency turns by the row's number, the ones behind them by the column's; the frame's has the others.
    for row, count in enumerate(counts, start=1):
        for index in range(row, 3 * count, 3):
            rows[index] = row
    levels = len(config.vision_config.deepstack_visual_indexes)
    return dataclasses.replace(spec, rotary_rows=tuple(rows), deepstack=levels)


def _features(model: Any, pixel_values: Any, next_layer: bool) -> Any:
    import torch

    from lmmprune.models.families import qwen_tower

    spec, tower, vision = _vision(model.config), model.model.visual, model.config.vision_config
    merge = vision.spatial_merge_size
    rows, columns = spec.grid[0] * merge, spec.grid[1] * merge
    x = qwen_tower.embed(tower, pixel_values, frames=spec.frames) + qwen_tower.positions(tower, rows, columns)
    turns = qwen_tower.turns(qwen_tower.rotary_angles(vision, rows, columns), batch=x.shape[0])
    deeper = []
    for index, layer in enumerate(tower.blocks):
        x = qwen_tower.block(layer, x, turns)
        if index in vision.deepstack_visual_indexes:
            merger = tower.deepstack_merger_list[vision.deepstack_visual_indexes.index(index)]
            deeper.append(qwen_tower.merge_patches(merger, x, spec.grid, merge, spec.tiles))
    last = qwen_tower.merge_patches(tower.merger, x, spec.grid, merge, spec.tiles)
    return torch.cat([last, *deeper], dim=-1)


FAMILY = Family(
    name="qwen3_vl",
    title="Qwen3-VL",
    template=qwen.TEMPLATE,
    image_token=qwen.IMAGE_TOKEN,
    inline=qwen.INLINE,
    vision=_vision,
    decoder=_decoder,
    shrink=shrink,
    vision_features=_features,
    reference="arXiv 2511.21631",
    tried=("Qwen/Qwen3-VL-2B-Instruct",),
    sizes=True,
    several=True,
    video=VideoSpec(
        token="<|video_pad|>",
        view="<{seconds} seconds><|vision_start|>{token}<|vision_end|>",
        sampling="ends",
        patch=2,
    ),
    limits=(
        qwen.SIZES,
        GROUPED,
        NO_CLS,
        "no method that makes new tokens before the decoder, which also gets the old ones of other depths (DeepStack)",
    ),
)
