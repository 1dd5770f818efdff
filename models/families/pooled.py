"""LLaVA-OneVision's videos: each frame as a whole, its projected patches pooled to a quarter, one newline behind all.

Reference: Li et al., LLaVA-OneVision: Easy Visual Task Transfer, 2024, arXiv 2408.03326.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmmprune.models.configure import pictures_together
from lmmprune.models.families import llava
from lmmprune.models.family import VisionSpec


def vision_spec(config: Any) -> VisionSpec:
    """Read the tower's numbers for frames, each a view of its own, or for all of a clip together."""
    # What patches of several frames have in common is put together behind the pooling.
    whole, together = llava.vision_spec(config), pictures_together(config)
    side = math.ceil(whole.grid[0] / 2)
    return dataclasses.replace(
        whole, tokens=together * side * side + 1, grid=(side, side), separators=1, pooled=True, has_next_layer=False
    )


def features(model: Any, pixel_values: Any, next_layer: bool) -> Any:
    """Return the tokens ``[B,N,C]`` of views, the newline last."""
    import torch

    patches, _ = llava.patches_of(model, pixel_values)
    projected = model.model.multi_modal_projector(patches)
    # A product with constants: what resizes pictures elsewhere has a name that not every engine knows for tokens.
    tokens = torch.matmul(torch.from_numpy(shares(llava.vision_spec(model.config).grid[0])), projected)
    together = pictures_together(model.config)
    tokens = tokens.reshape(-1, together * tokens.shape[1], tokens.shape[2])
    newline = model.model.image_newline
    table = torch.cat([tokens, newline.expand(tokens.shape[0], 1, -1)], dim=1)
    # Set in as everywhere: the row behind the tokens.
    return table.index_select(1, torch.arange(tokens.shape[1] + 1))


def shares(side: int) -> NDArray[np.float32]:
    """Return what each pooled token takes of each patch, ``[n,side*side]``: bilinear, at the middles of its square."""
    count = math.ceil(side / 2)
    # The middle of a pooled token, in patches whose middles lie at whole numbers.
    places = np.maximum((np.arange(count) + 0.5) * (side / count) - 0.5, 0)
    low = np.minimum(np.floor(places).astype(np.int64), side - 1)
    part = (places - low).astype(np.float32)
    axis = np.zeros((count, side), np.float32)
    np.add.at(axis, (np.arange(count), low), 1 - part)
    np.add.at(axis, (np.arange(count), np.minimum(low + 1, side - 1)), part)
    return np.kron(axis, axis)
