"""LLaVA-1.5: CLIP ViT with CLS, features of the last layer but one, two-layer projector, Llama decoder.

Checkpoints of the same layout with a SigLIP tower, which has no CLS, belong here too.

Reference: Liu et al., Improved Baselines with Visual Instruction Tuning, 2023, arXiv 2310.03744.
"""

from __future__ import annotations

from typing import Any

from lmmprune.errors import ModelError
from lmmprune.models.configure import pictures_together
from lmmprune.models.family import ENCODER_SITES, NO_CLS, OTHER_SITES, DecoderSpec, Family, VisionSpec

# Whether row 0 of a tower is CLS, by the tower's model_type.
_HAS_CLS = {"clip_vision_model": True, "siglip_vision_model": False}
# The strategy that hands over every patch and nothing else: 'default' drops row 0, 'full' drops nothing.
_STRATEGY = {True: "default", False: "full"}


def vision_spec(config: Any) -> VisionSpec:
    """Read the tower's numbers; also those of one tile in families that cut pictures into tiles.

    Raises:
        ModelError: A tower, a feature layer or a choice of features that isn't supported.
    """
    vision = config.vision_config
    layer = config.vision_feature_layer
    if not isinstance(layer, int):
        raise ModelError(f"vision_feature_layer is {layer!r}; one layer is supported: choose a model with an integer")
    has_cls = _has_cls(config)
    strategy = config.vision_feature_select_strategy
    if strategy != _STRATEGY[has_cls]:
        why = "'full' would hand CLS over as a token" if has_cls else "row 0 is a patch, which 'default' would drop"
        raise ModelError(
            f"vision_feature_select_strategy is '{strategy}' with the tower '{vision.model_type}': {why};"
            f" only '{_STRATEGY[has_cls]}' is supported with it"
        )
    if not isinstance(vision.image_size, int) or not isinstance(vision.patch_size, int):
        raise ModelError(
            f"the tower takes {vision.image_size} pixels in patches of {vision.patch_size}: expected one number each,"
            " for square pictures and patches"
        )
    side, together = vision.image_size // vision.patch_size, pictures_together(config)
    # hidden[0] are the embeddings, so a negative index counts from layers + 1.
    states = vision.num_hidden_layers + 1
    if not -states <= layer < states:
        raise ModelError(
            f"vision_feature_layer is {layer}, but the tower of {states - 1} layers has the states {-states} to"
            f" {states - 1}: is config.json the one of this checkpoint?"
        )
    layers = layer % states
    return VisionSpec(
        layers=layers,
        tokens=together * side * side,
        tiles=together,
        has_cls=has_cls,
        grid=(side, side),
        image_size=(vision.image_size, vision.image_size),
        has_next_layer=layers < vision.num_hidden_layers,
    )


def _has_cls(config: Any) -> bool:
    tower = config.vision_config.model_type
    if tower not in _HAS_CLS:
        raise ModelError(f"the vision tower is a '{tower}'; LLaVA is supported with {' or '.join(_HAS_CLS)}")
    return _HAS_CLS[tower]


def decoder_spec(config: Any) -> DecoderSpec:
    """Read the numbers of a decoder of Llama's layout."""
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


def shrink(config: Any, layers: int) -> Any:
    """Keep only so many decoder layers.

    Raises:
        ModelError: There aren't so many.
    """
    have = config.text_config.num_hidden_layers
    if not 1 <= layers <= have:
        raise ModelError(f"--layers {layers}: the decoder has {have} layers; give 1..{have}")
    config.text_config.num_hidden_layers = layers
    return config


def patches_of(model: Any, pixel_values: Any) -> tuple[Any, Any]:
    """Return the tower's patches at the feature layer ``[B,N,C]``, CLS dropped, and the hidden states of all layers."""
    config = model.config
    states = model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states
    hidden = states[config.vision_feature_layer % len(states)]
    return hidden[:, 1:] if _has_cls(config) else hidden, states


def behind(model: Any, states: Any) -> Any:
    """Return the hidden state behind the feature layer."""
    return states[model.config.vision_feature_layer % len(states) + 1]


def _features(model: Any, pixel_values: Any, next_layer: bool) -> Any:
    patches, states = patches_of(model, pixel_values)
    if (together := pictures_together(model.config)) > 1:
        # One row of tokens, those of one picture after those of the other.
        patches = patches.reshape(-1, together * patches.shape[1], patches.shape[2])
    features = model.model.multi_modal_projector(patches)
    return (features, behind(model, states)) if next_layer else features


FAMILY = Family(
    name="llava",
    title="LLaVA-1.5",
    template="USER: <image>\n{prompt} ASSISTANT:",
    image_token="<image>",
    vision=vision_spec,
    decoder=decoder_spec,
    shrink=shrink,
    vision_features=_features,
    early_template=True,
    several=True,
    joint=True,
    reference="arXiv 2310.03744",
    tried=(
        "llava-hf/llava-1.5-7b-hf",
        "llava-hf/llava-interleave-qwen-0.5b-hf",
        "llava-hf/bakLLaVA-v1-hf",
    ),
    sites=(*ENCODER_SITES, *OTHER_SITES),
    limits=(
        "pictures of the tower's own size",
        "CLIP or SigLIP towers; with SigLIP there is " + NO_CLS,
    ),
)
