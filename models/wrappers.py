"""The two modules that are traced: tower with projector, and decoder with embedding, image merge and cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from lmmprune.models import private_names
from lmmprune.models.family import DecoderSpec, Family


class Vision(torch.nn.Module):
    """``pixel_values [B,3,H,W]`` -> ``image_features [B,N,C]``, with ``next_layer`` also the state behind them."""

    def __init__(self, model: Any, family: Family, *, next_layer: bool) -> None:
        super().__init__()
        self.model = model
        self.features = family.vision_features
        self.next_layer = next_layer

    def forward(self, pixel_values: torch.Tensor) -> Any:
        """Return the projected features."""
        return self.features(self.model, pixel_values, self.next_layer)


class Decoder(torch.nn.Module):
    """One graph for prefill and decode; the image features replace the placeholders inside it.

    ``input_ids [B,S]``, ``image_features [B,K,(1+deepstack)*C]``, ``position_ids [B,S]`` (with M-RoPE ``[3,B,S]``), per
    layer past key and value ``[B,kv_heads,P,D]`` -> ``logits [B,1,V]`` of the last position, per layer present
    ``[B,kv_heads,P+S,D]``.
    """

    def __init__(self, model: Any, spec: DecoderSpec, image_token_id: int) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.image_token_id = image_token_id
        language = model.get_decoder()
        if spec.rotary_rows and not isinstance(language.rotary_emb, _MultimodalRotary):
            language.rotary_emb = _MultimodalRotary(language.rotary_emb, spec.rotary_rows)
        if spec.deepstack:
            # The module's own looks for image tokens by value, which has no static shape.
            private_names.replace_deepstack(language, _add_deeper)

    def forward(
        self,
        input_ids: torch.Tensor,
        image_features: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Return the last position's logits and the grown cache."""
        language = self.model.get_decoder()
        is_image = input_ids == self.image_token_id
        # The j-th placeholder takes feature j. Float32 because TensorRT's CumSum takes no integers; exact below 2**24.
        place = torch.clamp(torch.cumsum(is_image.to(torch.float32), dim=1).to(torch.int64) - 1, min=0)
        if input_ids.shape[0] > 1:
            place = torch.arange(input_ids.shape[0]).unsqueeze(1) * image_features.shape[1] + place
        # A Gather on the flattened [B*K, C] table: native everywhere, unlike a scatter.
        images = torch.nn.functional.embedding(place, image_features.flatten(0, 1))
        levels = torch.split(images, self.spec.width, dim=-1) if self.spec.deepstack else (images,)
        embeds = torch.where(is_image.unsqueeze(-1), levels[0], language.embed_tokens(input_ids))
        deeper: dict[str, Any] = {}
        if self.spec.deepstack:
            rows = [torch.where(is_image.unsqueeze(-1), level, 0.0) for level in levels[1:]]
            deeper = {"visual_pos_masks": is_image, "deepstack_visual_embeds": rows}
        cache: Any = DynamicCache()
        for layer, (key, value) in enumerate(past):
            cache.update(key, value, layer)
        hidden = language(
            inputs_embeds=embeds, position_ids=position_ids, past_key_values=cache, use_cache=True, **deeper
        ).last_hidden_state
        # Only the last position is ever sampled: the head's cost must not grow with the prompt.
        logits = self.model.lm_head(hidden[:, -1:])
        return logits, private_names.cached(cache)


class _MultimodalRotary(torch.nn.Module):
    """M-RoPE in the form of plain RoPE: each frequency reads its own row of ``position_ids [3,B,S]``.

    The module's own computes all rows with all frequencies and assembles the pieces, which no fusion recognizes.
    """

    def __init__(self, rotary: Any, rows: Sequence[int]) -> None:
        super().__init__()
        self.rotary = rotary
        self.rows = rows

    def forward(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin ``[B,S,D]``."""
        places = position_ids.index_select(0, torch.tensor(self.rows)).permute(1, 2, 0).to(torch.float32)
        half = places * self.rotary.inv_freq
        angles = torch.cat([half, half], dim=-1)
        scale = self.rotary.attention_scaling
        cos, sin = angles.cos(), angles.sin()
        return (cos, sin) if scale == 1 else (cos * scale, sin * scale)


def _add_deeper(hidden: torch.Tensor, is_image: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Add features that are zero wherever there is no image token: hidden and rows are ``[B,S,C]``."""
    return hidden + rows
