"""LLaVA-1.5: CLIP ViT with CLS, features of the last layer but one, two-layer projector, Llama decoder.

Reference: Liu et al., Improved Baselines with Visual Instruction Tuning, 2023, arXiv 2310.03744.
"""

from __future__ import annotations

from typing import Any

from lmmprune.errors import ModelError
from lmmprune.models.family import DecoderSpec, Family, VisionSpec


def _vision(config: Any) -> VisionSpec:
    vision = config.vision_config
    layer = config.vision_feature_layer
    if not isinstance(layer, int):
        raise ModelError(f"vision_feature_layer is {layer!r}; one layer is supported: choose a model with an integer")
    if config.vision_feature_select_strategy != "default":
        raise ModelError(
            f"vision_feature_select_strategy is '{config.vision_feature_select_strategy}'; only 'default' (CLS dropped)"
            " is supported"
        )
    side = vision.image_size // vision.patch_size
    return VisionSpec(
        # hidden[0] are the embeddings, so a negative index counts from layers + 1.
        layers=layer if layer >= 0 else vision.num_hidden_layers + 1 + layer,
        tokens=side * side,
        has_cls=True,
        grid=(side, side),
        image_size=(vision.image_size, vision.image_size),
    )


def _decoder(config: Any) -> DecoderSpec:
    from optimum.utils import NormalizedTextConfig

    text = config.text_config
    # Families call these numbers differently; optimum knows the names.
    names = NormalizedTextConfig(text)
    return DecoderSpec(
        layers=names.num_layers,
        width=names.hidden_size,
        mlp_width=text.intermediate_size,
        heads=names.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or names.hidden_size // names.num_attention_heads,
        vocabulary=names.vocab_size,
        max_positions=text.max_position_embeddings,
    )


def _shrink(config: Any, layers: int) -> Any:
    have = config.text_config.num_hidden_layers
    if not 1 <= layers <= have:
        raise ModelError(f"--layers {layers}: the decoder has {have} layers; give 1..{have}")
    config.text_config.num_hidden_layers = layers
    return config


def _features(model: Any, pixel_values: Any) -> Any:
    config = model.config
    hidden = model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states
    return model.model.multi_modal_projector(hidden[config.vision_feature_layer][:, 1:])


FAMILY = Family(
    name="llava",
    title="LLaVA-1.5",
    template="USER: <image>\n{prompt} ASSISTANT:",
    image_token="<image>",
    vision=_vision,
    decoder=_decoder,
    shrink=_shrink,
    vision_features=_features,
)
