"""InternVL in transformers' own port: InternViT with CLS, pixel shuffle, two-layer projector, Qwen or Llama decoder.

A picture goes in as one tile of the tower's size, as with ``crop_to_patches=False``; or as several with a thumbnail
behind them, each of which the tower sees by itself.

Reference: Zhu et al., InternVL3, 2025, arXiv 2504.10479.
"""

from __future__ import annotations

from typing import Any

from lmmprune.errors import ModelError
from lmmprune.models.families.llava import decoder_spec, shrink
from lmmprune.models.family import GROUPED, ONE_BY_ONE, Family, Split, VisionSpec

_PICTURE = "<img><IMG_CONTEXT></img>"
_SPLIT = Split(
    settings={"crop_to_patches": True},
    rule="shape",
    before="<img>",
    tile="<IMG_CONTEXT>",
    overview="<IMG_CONTEXT>",
    after="</img>",
)


def _vision(config: Any) -> VisionSpec:
    vision = config.vision_config
    # (setting, what it is, what is supported)
    settings = (
        ("vision_feature_layer", config.vision_feature_layer, -1),
        ("vision_feature_select_strategy", config.vision_feature_select_strategy, "default"),
    )
    for name, found, expected in settings:
        if found != expected:
            raise ModelError(f"{name} is {found!r}: InternVL is supported with {expected!r}")
    (height, width), (patch, other) = vision.image_size, vision.patch_size
    ratio = config.downsample_ratio
    side, merge = height // patch, round(1 / ratio)
    # The module divides by the ratio itself, so that thirds don't go.
    if height != width or patch != other or side % merge or side % ratio or merge * ratio != 1:
        raise ModelError(
            f"the tower takes {height} x {width} pixels in patches of {patch} x {other}, and downsample_ratio is"
            f" {ratio}: expected square pictures of whole squares of patches"
        )
    return VisionSpec(
        layers=vision.num_hidden_layers,
        tokens=(side // merge) ** 2,
        has_cls=True,
        grid=(side // merge, side // merge),
        image_size=(height, width),
        merge=merge,
        has_next_layer=False,
    )


def _features(model: Any, pixel_values: Any, next_layer: bool) -> Any:
    body = model.model
    hidden = body.vision_tower(pixel_values).last_hidden_state[:, 1:]
    side = round(hidden.shape[1] ** 0.5)
    squares = body.pixel_shuffle(hidden.unflatten(1, (side, side)), scale_factor=model.config.downsample_ratio)
    return body.multi_modal_projector(squares.flatten(1, 2))


FAMILY = Family(
    name="internvl",
    title="InternVL",
    template=f"<|im_start|>user\n{_PICTURE}\n{{prompt}}<|im_end|>\n<|im_start|>assistant\n",
    image_token="<IMG_CONTEXT>",
    picture=_PICTURE,
    processor={"crop_to_patches": False},
    vision=_vision,
    decoder=decoder_spec,
    shrink=shrink,
    vision_features=_features,
    reference="arXiv 2504.10479",
    several=True,
    split=_SPLIT,
    tried=("OpenGVLab/InternVL3-1B-hf", "OpenGVLab/InternVL3_5-1B-HF"),
    limits=(
        ONE_BY_ONE,
        GROUPED,
        "no prumerge: it reads the encoder layer behind the features, which come from the last one",
    ),
)
