"""The vision side of each family in pieces, each one on a single picture: the formulas put them together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lmmprune.compiler.verify.reference.cut import CutRefused
from lmmprune.compiler.verify.reference.layer_attention import LayerAttention, vision_attention
from lmmprune.compiler.verify.reference.packing import Packing, anyres

Attend = Callable[[Any, torch.Tensor, list[float]], tuple[torch.Tensor, LayerAttention]]


@dataclass(frozen=True, kw_only=True)
class Tower:
    """What a picture goes through.

    Attributes:
        has_cls: Whether row 0 is a CLS token.
        depth: V, encoder layers before the features.
        layers: All encoder layers.
        columns: Patches in a row of the picture.
        embed: ``[3,height,width]`` -> ``[T,C]``.
        attend: A layer, the stream ``[T,C]``, the patches behind each row -> what attention adds, and its look.
        feed: A layer, the stream -> what the MLP adds.
        finish: The stream behind the last layer before the features -> the features.
        merge: Patches a side of the square that makes a token.
        project: Tokens ``[n, merge * merge * C]`` -> ``[n,C']``.
        windowed: Numbers of the layers that attend within windows: methods look at the next one that doesn't.
        compared: How many of the C' channels are the token's own features; None: all.
        packing: Which tokens a picture has that is cut into tiles; None: it is one image.
        newline: ``[C']``, with packing.
    """

    has_cls: bool
    depth: int
    layers: Sequence[Any]
    columns: int
    embed: Callable[[torch.Tensor], torch.Tensor]
    attend: Attend
    feed: Callable[[Any, torch.Tensor], torch.Tensor]
    project: Callable[[torch.Tensor], torch.Tensor]
    finish: Callable[[torch.Tensor], torch.Tensor] = field(default=lambda x: x)
    merge: int = 1
    windowed: frozenset[int] = frozenset()
    compared: int | None = None
    packing: Packing | None = None
    newline: torch.Tensor | None = None

    @property
    def tiles(self) -> int:
        """Images of a picture."""
        return self.packing.tiles if self.packing else 1

    @property
    def newlines(self) -> int:
        """Tokens that are no patches."""
        return len(self.packing.newlines) if self.packing else 0

    def squares(self, patches: int) -> list[list[tuple[int, int]]]:
        """Return tile and patch of each patch of each token; within a tile of so many patches in raster order."""
        if self.packing:
            return [[token] for token in self.packing.patches]
        return [[(0, patch) for patch in square] for square in self._squares(patches)]

    def _squares(self, patches: int) -> list[list[int]]:
        if self.merge == 1:
            return [[patch] for patch in range(patches)]
        m, rows = self.merge, patches // self.columns
        corners = [(y, x) for y in range(0, rows, m) for x in range(0, self.columns, m)]
        return [[(y + i) * self.columns + x + j for i in range(m) for j in range(m)] for y, x in corners]


def tower_of(model: Any, size: tuple[int, int]) -> Tower:
    """Return the tower of a loaded model for pictures of a height and width in pixels.

    Raises:
        CutRefused: The reference doesn't know the family.
    """
    # They are built from the parts here.
    from lmmprune.compiler.verify.reference import qwen

    kind = model.config.model_type
    if kind in qwen.TOWERS:
        return qwen.TOWERS[kind](model, size)
    if kind not in _TOWERS:
        raise CutRefused(f"it has no tower of '{kind}', only of {', '.join([*_TOWERS, *qwen.TOWERS])}")
    return _TOWERS[kind](model)


def _attend(layer: Any, x: torch.Tensor, sizes: list[float]) -> tuple[torch.Tensor, LayerAttention]:
    return vision_attention(layer.self_attn, layer.layer_norm1(x), sizes)


def _feed(layer: Any, x: torch.Tensor) -> torch.Tensor:
    added: torch.Tensor = layer.mlp(layer.layer_norm2(x))
    return added


def _llava(model: Any) -> Tower:
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
    )


def _anyres(model: Any) -> Tower:
    """LLaVA's tower on an overview and tiles, their tokens packed with newlines."""
    return dataclasses.replace(_llava(model), packing=anyres(model.config), newline=model.model.image_newline)


def _idefics3(model: Any) -> Tower:
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


def _internvl(model: Any) -> Tower:
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
    )


_TOWERS: dict[str, Callable[[Any], Tower]] = {
    "llava": _llava,
    "llava_next": _anyres,
    "llava_onevision": _anyres,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
    "internvl": _internvl,
}
