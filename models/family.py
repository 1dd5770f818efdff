"""What a model family must state, as data, so that the generic code can trace, prune and run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lmmprune.models.tiles import Tiling


@dataclass(frozen=True, kw_only=True)
class VisionSpec:
    """The vision tower as the decoder sees it.

    Attributes:
        layers: Encoder layers that lie before the features (layers behind them are dead weight).
        tokens: Visual tokens N that the decoder gets of a picture, CLS not counted.
        has_cls: Whether row 0 of the encoder is a CLS token.
        grid: Patch rows and columns of one tower image; ``rows * columns * tiles + separators == N``.
        image_size: Height and width of one tower image in pixels.
        beyond: Whether the tower has a layer behind the features.
        tiles: Tower images per picture (T): ``pixel_values`` is ``[B*T,3,H,W]``.
        separators: Tokens among the N that are no patches (newlines): they are never candidates and always stay.
        tiling: How pictures are cut, where T > 1.
    """

    layers: int
    tokens: int
    has_cls: bool
    grid: tuple[int, int]
    image_size: tuple[int, int]
    beyond: bool = True
    tiles: int = 1
    separators: int = 0
    tiling: Tiling | None = None


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """The language model: the numbers that the cache, the FLOPs formula and the run-time need."""

    layers: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_positions: int


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model family: data, and the three functions that read a configuration or wrap a module for tracing.

    Attributes:
        name: Name of the family, also its ``model_type`` in config.json.
        title: What people call it.
        template: Prompt with ``<image>`` and ``{prompt}``, used where the checkpoint brings no chat template.
        image_token: Text of the image placeholder.
        vision: Reads a ``VisionSpec`` from the transformers configuration.
        decoder: Reads a ``DecoderSpec`` from it.
        shrink: Reduces a configuration to so many decoder layers.
        vision_features: ``(model, pixel_values [B*tiles,3,H,W], False) -> [B,N,C]`` after the projector; with True also
            the hidden state of the encoder layer behind the features, whose q and k some methods read.
        reference: The paper.
        sites: Kinds of sites that tokens can be cut at.
        limits: What isn't supported and why, one sentence each, for ``lmmprune models``.
        arrange: Fixes into how many rows and columns of tiles every picture is cut (None: the family's own choice) and
            returns the configuration with it and the choice; None for families that take a picture as a whole.
    """

    name: str
    title: str
    template: str
    image_token: str
    vision: Callable[[Any], VisionSpec]
    decoder: Callable[[Any], DecoderSpec]
    shrink: Callable[[Any, int], Any]
    vision_features: Callable[[Any, Any, bool], Any]
    reference: str
    sites: tuple[str, ...]
    limits: tuple[str, ...]
    arrange: Callable[[Any, tuple[int, int] | None], tuple[Any, tuple[int, int]]] | None = None
