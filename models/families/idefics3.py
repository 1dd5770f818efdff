"""Idefics3, SmolVLM and SmolVLM2: SigLIP-like tower, pixel shuffle, one linear connector, Llama decoder.

A picture goes in as one image of the tower's size, as with ``do_image_splitting=False``; or as tiles with an overview
behind them, each of which the tower sees by itself.

Reference: Laurençon et al., Building and better understanding vision-language models, 2024, arXiv 2408.12637; Marafioti
et al., SmolVLM, 2025, arXiv 2504.05299.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from lmmprune.errors import ModelError
from lmmprune.models.families.llava import decoder_spec, shrink
from lmmprune.models.family import GROUPED, NO_CLS, ONE_BY_ONE, Family, Split, VisionSpec

_FAKE = "<fake_token_around_image>"
_PICTURE = f"{_FAKE}<global-img><image>{_FAKE}"
_SPLIT = Split(
    settings={"do_image_splitting": True},
    rule="cover",
    tile=f"{_FAKE}<row_{{row}}_col_{{column}}><image>",
    row_end="\n",
    overview=f"\n{_PICTURE}",
)


def _vision(config: Any) -> VisionSpec:
    vision, merge = config.vision_config, config.scale_factor
    if not isinstance(vision.image_size, int) or not isinstance(vision.patch_size, int):
        raise ModelError(
            f"the tower takes {vision.image_size} pixels in patches of {vision.patch_size}: expected one number each,"
            " for square pictures and patches"
        )
    side = vision.image_size // vision.patch_size
    if side % merge:
        raise ModelError(
            f"scale_factor {merge} doesn't divide the {side} patches of a row: expected whole squares of patches"
        )
    return VisionSpec(
        layers=vision.num_hidden_layers,
        tokens=(side // merge) ** 2,
        has_cls=False,
        grid=(side // merge, side // merge),
        image_size=(vision.image_size, vision.image_size),
        merge=merge,
        has_next_layer=False,
    )


def _prepare(model: Any) -> None:
    """Compute where each patch of a full picture stands.

    The module finds it by sorting fractions into buckets, at each call. Rounding sends some patches to a neighbour's
    place in grids of 19, 25 or 29 patches a side, and a trained model knows them there: so its own code is asked.
    """
    import torch

    embeddings = model.model.vision_model.embeddings
    tiny = copy.deepcopy(model.config.vision_config)
    tiny.hidden_size = 1
    side = embeddings.num_patches_per_side
    probe = type(embeddings)(tiny)
    with torch.no_grad():
        for parameter in probe.patch_embedding.parameters():
            parameter.zero_()
        probe.position_embedding.weight.copy_(torch.arange(side * side, dtype=torch.float32)[:, None])
        pixels = torch.zeros(1, tiny.num_channels, embeddings.image_size, embeddings.image_size)
        found = probe(pixels, torch.ones(1, side, side, dtype=torch.bool))
    embeddings.register_buffer("places", found[0, :, 0].round().to(torch.int64), persistent=False)


def _features(model: Any, pixel_values: Any, next_layer: bool) -> Any:
    tower = model.model.vision_model
    embeddings = tower.embeddings
    hidden = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
    hidden = hidden + embeddings.position_embedding(embeddings.places)
    for layer in tower.encoder.layers:
        hidden = layer(hidden, None)
    return model.model.connector(tower.post_layernorm(hidden))


FAMILY = Family(
    name="idefics3",
    title="Idefics3, SmolVLM",
    template=f"<|im_start|>User:{_PICTURE}{{prompt}}<end_of_utterance>\nAssistant:",
    image_token="<image>",
    picture=_PICTURE,
    processor={"do_image_splitting": False, "do_pad": False},
    vision=_vision,
    decoder=decoder_spec,
    shrink=shrink,
    vision_features=_features,
    reference="arXiv 2408.12637, 2504.05299",
    tried=(
        "HuggingFaceTB/SmolVLM-256M-Instruct",
        "HuggingFaceTB/SmolVLM-500M-Instruct",
        "HuggingFaceM4/Idefics3-8B-Llama3",
    ),
    limits=(ONE_BY_ONE, GROUPED, NO_CLS),
    several=True,
    split=_SPLIT,
    prepare=_prepare,
)
SMOLVLM = dataclasses.replace(
    FAMILY, name="smolvlm", title="SmolVLM2", tried=("HuggingFaceTB/SmolVLM2-256M-Video-Instruct",)
)
