"""The vision side of the Qwen-VL families in pieces: patch by patch, all in raster order, windows as a mask."""

from __future__ import annotations

import math
from typing import Any

import torch

from lmmprune.compiler.verify.reference.layer_attention import LayerAttention, attend, rotate, split
from lmmprune.compiler.verify.reference.tower import Tower


def qwen2_vl(model: Any, size: tuple[int, int]) -> Tower:
    """Return the tower of a Qwen2-VL for pictures of a height and width in pixels."""
    visual, vision = model.model.visual, model.config.vision_config
    places = _places(size, vision.patch_size)
    return Tower(
        has_cls=False,
        depth=vision.depth,
        layers=visual.blocks,
        columns=size[1] // vision.patch_size,
        embed=lambda picture: _embed(visual, picture, places),
        attend=lambda layer, x, sizes: _attend(visual, layer, x, places, torch.zeros(len(x), len(x))),
        feed=_feed,
        finish=visual.merger.ln_q,
        merge=vision.spatial_merge_size,
        project=visual.merger.mlp,
    )


def qwen2_5_vl(model: Any, size: tuple[int, int]) -> Tower:
    """Return the tower of a Qwen2.5-VL for pictures of a height and width in pixels."""
    visual, vision = model.model.visual, model.config.vision_config
    merge = vision.spatial_merge_size
    window = vision.window_size // vision.patch_size // merge * merge
    places = _places(size, vision.patch_size)
    windows = [(row // window, column // window) for row, column in places]
    apart = torch.tensor([[one != other for other in windows] for one in windows])
    shut = torch.zeros(len(places), len(places)).masked_fill(apart, -math.inf)
    windowed = frozenset(range(vision.depth)) - frozenset(vision.fullatt_block_indexes)
    masks = {layer: shut for number, layer in enumerate(visual.blocks) if number in windowed}

    def attend_within(layer: Any, x: torch.Tensor, sizes: list[float]) -> tuple[torch.Tensor, LayerAttention]:
        return _attend(visual, layer, x, places, masks.get(layer, torch.zeros_like(shut)))

    return Tower(
        has_cls=False,
        depth=vision.depth,
        layers=visual.blocks,
        columns=size[1] // vision.patch_size,
        embed=lambda picture: _embed(visual, picture, places),
        attend=attend_within,
        feed=_feed,
        finish=visual.merger.ln_q,
        merge=merge,
        project=visual.merger.mlp,
        windowed=windowed,
    )


def qwen3_vl(model: Any, size: tuple[int, int]) -> Tower:
    """Return the tower of a Qwen3-VL; a patch's states at the depths of DeepStack travel behind its last one."""
    visual, vision = model.model.visual, model.config.vision_config
    places = _places(size, vision.patch_size)
    squares, channels = vision.spatial_merge_size**2, vision.hidden_size
    depths = vision.deepstack_visual_indexes
    entering: dict[Any, torch.Tensor] = {}

    def embed(picture: torch.Tensor) -> torch.Tensor:
        side = visual.num_grid_per_side
        table = visual.pos_embed.weight.T.reshape(1, channels, side, side)
        grid = places[-1][0] + 1, places[-1][1] + 1
        learned = torch.nn.functional.interpolate(table, grid, mode="bilinear", align_corners=True)
        return _embed(visual, picture, places) + learned[0].flatten(1).T

    def attend_all(layer: Any, x: torch.Tensor, sizes: list[float]) -> tuple[torch.Tensor, LayerAttention]:
        entering[layer] = x
        return _attend(visual, layer, x, places, torch.zeros(len(x), len(x)))

    def finish(x: torch.Tensor) -> torch.Tensor:
        states = [*(entering[layer] for layer in visual.blocks[1:]), x]
        return torch.cat([visual.merger.norm(x), *(states[depth] for depth in depths)], dim=1)

    def project(tokens: torch.Tensor) -> torch.Tensor:
        patches = tokens.reshape(len(tokens), squares, 1 + len(depths), channels)
        own, *deeper = (patches[:, :, level].flatten(1) for level in range(1 + len(depths)))
        levels = [_mlp(visual.merger, own)]
        for merger, level in zip(visual.deepstack_merger_list, deeper, strict=True):
            levels.append(_mlp(merger, merger.norm(level)))
        return torch.cat(levels, dim=1)

    return Tower(
        has_cls=False,
        depth=vision.depth,
        layers=visual.blocks,
        columns=size[1] // vision.patch_size,
        embed=embed,
        attend=attend_all,
        feed=_feed,
        finish=finish,
        merge=vision.spatial_merge_size,
        project=project,
        compared=vision.out_hidden_size,
    )


def _places(size: tuple[int, int], patch: int) -> list[tuple[int, int]]:
    """Return row and column of every patch."""
    return [(row, column) for row in range(size[0] // patch) for column in range(size[1] // patch)]


def _embed(visual: Any, picture: torch.Tensor, places: list[tuple[int, int]]) -> torch.Tensor:
    """[3,height,width] -> [N,C]: each patch's pixels, as often as there are frames, times the weights.

    Or those of its place in each frame of ``[frames,3,height,width]``.
    """
    patch, frames = visual.patch_embed.patch_size, visual.patch_embed.temporal_patch_size
    module = visual.patch_embed.proj
    rows = []
    for row, column in places:
        pixels = picture[..., row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        each = [pixels] * frames if picture.dim() == 3 else list(pixels)
        rows.append(torch.stack(each, dim=1).flatten())
    return torch.nn.functional.linear(torch.stack(rows), module.weight.flatten(1), module.bias)


def _attend(
    visual: Any, layer: Any, x: torch.Tensor, places: list[tuple[int, int]], added: torch.Tensor
) -> tuple[torch.Tensor, LayerAttention]:
    module = layer.attn
    q, k, v = (split(part, module.head_dim) for part in module.qkv(layer.norm1(x)).chunk(3, dim=1))
    cos, sin = visual.rotary_pos_emb(x, torch.tensor(places))
    mixed, attention = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, module.scaling, added.to(x.dtype))
    return module.proj(mixed), attention


def _feed(layer: Any, x: torch.Tensor) -> torch.Tensor:
    added: torch.Tensor = layer.mlp(layer.norm2(x))
    return added


def _mlp(merger: Any, tokens: torch.Tensor) -> torch.Tensor:
    projected: torch.Tensor = merger.linear_fc2(merger.act_fn(merger.linear_fc1(tokens)))
    return projected
