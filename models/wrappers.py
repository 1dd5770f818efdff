"""The two modules that are traced: tower with projector, and decoder with embedding, image merge and cache."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from lmmprune.models.family import Family


class Vision(torch.nn.Module):
    """``pixel_values [B,3,H,W]`` -> ``image_features [B,N,C]``, with ``beyond`` also the state behind the features."""

    def __init__(self, model: Any, family: Family, *, beyond: bool) -> None:
        super().__init__()
        self.model = model
        self.features = family.vision_features
        self.beyond = beyond

    def forward(self, pixel_values: torch.Tensor) -> Any:
        """Return the projected features."""
        return self.features(self.model, pixel_values, self.beyond)


class Decoder(torch.nn.Module):
    """One graph for prefill and decode; the image features replace the placeholders inside it.

    ``input_ids [B,S]``, ``image_features [B,K,C]``, ``position_ids [B,S]``, per layer past key and value
    ``[B,kv_heads,P,D]`` -> ``logits [B,1,V]`` of the last position, per layer present ``[B,kv_heads,P+S,D]``.
    """

    def __init__(self, model: Any, image_token_id: int) -> None:
        super().__init__()
        self.model = model
        self.image_token_id = image_token_id

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
        embeds = torch.where(is_image.unsqueeze(-1), images, language.embed_tokens(input_ids))
        cache: Any = DynamicCache()
        for layer, (key, value) in enumerate(past):
            cache.update(key, value, layer)
        hidden = language(
            inputs_embeds=embeds, position_ids=position_ids, past_key_values=cache, use_cache=True
        ).last_hidden_state
        # Only the last position is ever sampled: the head's cost must not grow with the prompt.
        logits = self.model.lm_head(hidden[:, -1:])
        return logits, [(layer.keys, layer.values) for layer in cache.layers]
