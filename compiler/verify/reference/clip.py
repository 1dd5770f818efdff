"""The vision sides of the families whose tower sees pictures of one size: LLaVA and its kin, Idefics3, InternVL."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from lmmprune.compiler.verify.reference.cut import CutRefused
from lmmprune.compiler.verify.reference.layer_attention import LayerAttention, vision_attention
from lmmprune.compiler.verify.reference.packing import NEWLINE, Packing, side_by_side
from lmmprune.compiler.verify.reference.packing import anyres as packed
from lmmprune.compiler.verify.reference.tower import Tower


def _attend(layer: Any, x: torch.Tensor, sizes: list[float]) -> tuple[torch.Tensor, LayerAttention]:
    return vision_attention(layer.self_attn, layer.layer_norm1(x), sizes)


def _feed(layer: Any, x: torch.Tensor) -> torch.Tensor:
    added: torch.Tensor = layer.mlp(layer.layer_norm2(x))
    return added


def llava(model: Any) -> Tower:
    """CLIP or SigLIP; LLaVA must drop row 0 ('default') where it is CLS, else not."""
    vision, tower, layer = model.config.vision_config, model.model.vision_tower, model.config.vision_feature_layer
    cls = hasattr(tower.embeddings, "class_embedding")
    if model.config.vision_feature_select_strategy != ("default" if cls else "full"):
        raise CutRefused("the CLS token would be a feature, or a patch be dropped as CLS")

    def embed(picture: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = tower.embeddings(picture[None])[0]
        return tower.pre_layrnorm(x) if hasattr(tower, "pre_layrnorm") else x

    return Tower(
        has_cls=cls,
        # hidden[0] are the embeddings.
        depth=layer if layer >= 0 else len(tower.encoder.layers) + 1 + layer,
        layers=tower.encoder.layers,
        columns=vision.image_size // vision.patch_size,
        embed=embed,
        attend=_attend,
        feed=_feed,
        project=model.model.multi_modal_projector,
        packing=side_by_side(model.config) if getattr(model.config, "pictures_together", 1) > 1 else None,
    )


def anyres(model: Any) -> Tower:
    """LLaVA's tower on an overview and tiles, their tokens packed with newlines."""
    return dataclasses.replace(llava(model), packing=packed(model.config), newline=model.model.image_newline)


def onevision(model: Any) -> Tower:
    """LLaVA-OneVision: pictures as ``anyres``, or frames of a video, pooled to half of their sides."""
    if getattr(model.config, "video_frames", None) is None:
        return anyres(model)
    vision, views = model.config.vision_config, getattr(model.config, "pictures_together", 1)
    side = vision.image_size // vision.patch_size
    half = math.ceil(side / 2)

    def pool(projected: torch.Tensor) -> torch.Tensor:
        raster = projected.reshape(views, side, side, -1).permute(0, 3, 1, 2)
        return torch.nn.functional.interpolate(raster, (half, half), mode="bilinear").flatten(2).mT.flatten(0, 1)

    tokens = [(view, token) for view in range(views) for token in range(half * half)]
    packing = Packing(tiles=views, tokens=[*tokens, NEWLINE])
    return dataclasses.replace(llava(model), packing=packing, newline=model.model.image_newline, pool=pool)


def idefics3(model: Any) -> Tower:
    """Idefics3 and SmolVLM: the features are behind the last norm, one matrix projects squares of them."""
    vision, tower = model.config.vision_config, model.model.vision_model
    side = vision.image_size // vision.patch_size

    def embed(picture: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = tower.embeddings(picture[None], torch.ones(1, side, side, dtype=torch.bool))[0]
        return x

    return Tower(
        has_cls=False,
        depth=len(tower.encoder.layers),
        layers=tower.encoder.layers,
        columns=side,
        embed=embed,
        attend=_attend,
        feed=_feed,
        finish=tower.post_layernorm,
        merge=model.config.scale_factor,
        project=model.model.connector.modality_projection,
    )


def internvl(model: Any) -> Tower:
    """InternViT: gains on what a layer adds, CLS dropped, a norm and two matrices project squares of patches."""
    vision, tower = model.config.vision_config, model.model.vision_tower

    def embed(picture: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = tower.embeddings(picture[None])[0]
        return x

    def attend(layer: Any, x: torch.Tensor, sizes: list[float]) -> tuple[torch.Tensor, LayerAttention]:
        mixed, look = vision_attention(layer.attention, layer.layernorm_before(x), sizes)
        return layer.lambda_1 * mixed, look

    def feed(layer: Any, x: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = layer.lambda_2 * layer.mlp(layer.layernorm_after(x))
        return added

    return Tower(
        has_cls=True,
        depth=len(tower.encoder.layer),
        layers=tower.encoder.layer,
        columns=vision.image_size[1] // vision.patch_size[1],
        embed=embed,
        attend=attend,
        feed=feed,
        finish=tower.layernorm,
        merge=round(1 / model.config.downsample_ratio),
        project=model.model.multi_modal_projector,
        views=getattr(model.config, "pictures_together", 1),
    )
