"""The vision tower: its configuration, and how it grows from few layers to many."""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from small_llava.scenes import IMAGE_SIZE, PATCH_SIZE

WIDTH = 128
SHALLOW, DEEP = 5, 10
"""Layers of the tower in the first stage, and from the second on."""

GROWTH = (0, 0, 1, 1, 2, 2, 3, 3, 3, 4)
"""Which shallow layer each deep layer is made of; the last one only serves the CLS token."""


def vision_config(layers: int = DEEP) -> CLIPVisionConfig:
    """Describe the tower: CLIP with CLS, 14 x 14 patches."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=WIDTH,
    )


def build_tower(layers: int, seed: int) -> CLIPVisionModel:
    """Initialise an untrained tower; larger weights than the defaults learn faster this small."""
    torch.manual_seed(seed)
    config = vision_config(layers)
    config._attn_implementation = "plain"
    tower = CLIPVisionModel(config)
    for name, weight in tower.named_parameters():
        if "embedding" in name:
            torch.nn.init.normal_(weight, std=0.04 if "patch" in name else 0.02)
        elif weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.04)
    return tower


def grow(layers: nn.ModuleList, plan: Sequence[int], outputs: Sequence[str]) -> nn.ModuleList:
    """Repeat layers so that the stack computes what it did before.

    Args:
        layers: the shallow stack of residual layers.
        plan: for each deep layer the shallow one it is made of; the first of a run is the layer
            itself, the others are copies that add nothing yet.
        outputs: the submodules of a layer that write into the residual stream; zero in a copy.
    """
    deep: list[nn.Module] = []
    for place, source in enumerate(plan):
        layer = copy.deepcopy(layers[source])
        if place and plan[place - 1] == source:
            for name in outputs:
                for weight in layer.get_submodule(name).parameters():
                    nn.init.zeros_(weight)
        if hasattr(layer, "self_attn") and hasattr(layer.self_attn, "layer_idx"):
            layer.self_attn.layer_idx = place
        deep.append(layer)
    return nn.ModuleList(deep)
