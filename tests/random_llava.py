"""Tiny random LLaVA models whose attention is neither flat nor saturated."""

from __future__ import annotations

import math
from typing import Any

import torch

PATCH = 4  # pixels
NEVER_GENERATED = 4  # ids 0..3: padding, begin, end, and the image's placeholder
IMAGE_TOKEN = 3


def random_llava(
    seed: int,
    *,
    has_cls: bool,
    grid: int,
    vision_layers: int,
    vision_heads: int,
    vision_head_dim: int,
    llm_layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    vocab: int = 40,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Return a LlavaForConditionalGeneration with eager attention in eval mode; equal seeds give equal weights.

    The tower is CLIP with CLS or SigLIP without, takes pictures of ``grid * 4`` pixels a side, and has
    ``vision_layers`` layers in all: the features come from the last but one, so V = vision_layers - 1. A float64 model
    has the float32 model's weights. Tokens 0..3 are never generated (their logits are zero); 3 is the image's
    placeholder.
    """
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        SiglipVisionConfig,
    )

    width = vision_heads * vision_head_dim
    sizes = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": vision_layers,
        "num_attention_heads": vision_heads,
        "image_size": grid * PATCH,
        "patch_size": PATCH,
    }
    vision = CLIPVisionConfig(**sizes, projection_dim=width) if has_cls else None
    text = LlamaConfig(
        vocab_size=vocab,
        hidden_size=heads * head_dim,
        intermediate_size=2 * heads * head_dim,
        num_hidden_layers=llm_layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = LlavaConfig(
        vision_config=vision or SiglipVisionConfig(**sizes, vision_use_head=False),
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=grid * grid,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if has_cls else "full",
    )
    config._attn_implementation = "eager"
    model = LlavaForConditionalGeneration(config).eval()
    fill(model, torch.Generator().manual_seed(seed))
    return model.to(dtype)


def fill(model: Any, generator: torch.Generator) -> None:
    """Draw every parameter: activations near one, attention logits with a standard deviation near 1.5."""
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                drawn = 0.1 * noise
            elif "norm" in name:
                drawn = 1 + 0.2 * noise
            elif "embed" in name and "patch" not in name:
                drawn = noise
            else:
                # q.k / sqrt(D) has the fourth power of this gain as its variance.
                gain = 1.5**0.5 if "q_proj" in name or "k_proj" in name else 1.0
                drawn = gain * noise / math.sqrt(parameter[0].numel())
            parameter.copy_(drawn)
        if hasattr(model, "lm_head"):
            model.lm_head.weight[:NEVER_GENERATED] = 0
