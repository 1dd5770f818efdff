"""What the prefill costs by formula: floating-point operations and the key/value cache, from a decoder's sizes alone.

The convention is that of the papers on visual-token reduction: one multiply-accumulate is 2 FLOPs; only the decoder
layers count, not the vision tower, the projector, the embedding or ``lm_head``; attention counts the whole n x n
matrix, as if no entry were masked; element-wise work (norms, softmax, rotation) isn't counted.

Per layer, with n tokens (visual and text), width d, MLP width m, H query heads and G key/value heads of width D::

    4 n d HD  (q, o)  +  4 n d GD  (k, v)  +  4 n^2 HD  (logits, weighted sum)  +  6 n d m  (gate, up, down)

A cut inside a layer, between attention and MLP, leaves the MLP fewer tokens than attention had: n_in of them in the
first three terms, n_out in the last. A cut that the layer behind it scores (PyramidDrop) has that layer compute k of
the n_in tokens in front of the cut, and q of one, beside what it does for those that stay::

    2 n_in d GD + 2 d HD

Scores and merging themselves aren't charged, as in the literature: a few rows of products. The graphs' own count has
them (``lmmprune flops BUNDLE``), in nodes that are marked as scores; all others add up to this formula.

Where H = G and HD = d, as in LLaVA-1.5, that is ``8 n d^2 + 4 n^2 d + 6 n d m``, and the cache in half precision is
``4 n d`` bytes per layer. Summed over the layers both give the literature's figures within rounding: 8.45 T and
333.4 MB for LLaVA-1.5-7B at 576 + 60 tokens, published as 8.5 T and 333 MB; 3.30, 2.45 and 1.51 T at 252, 188 and 116
tokens, published as 3.3, 2.4 and 1.5 T (Han et al., FiCoCo, 2024, arXiv 2411.17686). ``tests/test_flops.py`` has the
table. Papers that count multiply-accumulates, or two matrices instead of three in the MLP, print smaller numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from lmmprune.errors import InputError
from lmmprune.models.family import DecoderSpec

TEXT_TOKENS = 60
"""Text tokens beside the visual ones in the literature's figures."""

HALF = 2
"""Bytes of a number in the cache in half precision, the literature's convention."""


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """What one prefill costs.

    Attributes:
        tokens_per_layer: Tokens that each layer hands on, visual and text; averages may be fractions.
        flops_per_layer: FLOPs of each layer, 1 multiply-accumulate = 2 FLOPs.
        kv_bytes: Size of the key/value cache that it leaves, in bytes, in half precision.
    """

    tokens_per_layer: tuple[float, ...]
    flops_per_layer: tuple[float, ...]
    kv_bytes: float

    @property
    def flops(self) -> float:
        """FLOPs of all layers together."""
        return sum(self.flops_per_layer)


def prefill(
    spec: DecoderSpec,
    tokens_per_layer: Sequence[float],
    attending: Sequence[float] | None = None,
    scoring: Mapping[int, float] = MappingProxyType({}),
) -> Prefill:
    """Return what the prefill of a sequence costs.

    Args:
        spec: Sizes of the decoder.
        tokens_per_layer: Tokens that each layer hands on, visual and text together. ``uniform`` makes it where nothing
            is cut inside the decoder.
        attending: Tokens that each layer's attention has, and leaves in its cache: more than it hands on where a cut
            lies between attention and MLP. None: the same.
        scoring: Layer -> tokens in front of a cut that it scores itself.

    Raises:
        InputError: Another number of entries than layers, or a negative one.
    """
    if len(tokens_per_layer) != spec.layers:
        raise InputError(f"{len(tokens_per_layer)} token counts were given, the decoder has {spec.layers} layers")
    attending = tokens_per_layer if attending is None else attending
    if min(tokens_per_layer) < 0:
        raise InputError(f"a layer can't see {min(tokens_per_layer)} tokens: give counts of 0 and more")
    return Prefill(
        tokens_per_layer=tuple(tokens_per_layer),
        flops_per_layer=tuple(
            layer_flops(spec, tokens, entered) + (own_score_flops(spec, scoring[layer]) if layer in scoring else 0)
            for layer, (tokens, entered) in enumerate(zip(tokens_per_layer, attending, strict=True))
        ),
        kv_bytes=kv_bytes(attending, kv_heads=spec.kv_heads, head_dim=spec.head_dim),
    )


def uniform(spec: DecoderSpec, tokens: float) -> tuple[float, ...]:
    """Return the token count of every layer of a decoder that all tokens pass through."""
    return (tokens,) * spec.layers


def layer_flops(spec: DecoderSpec, tokens: float, attending: float | None = None) -> float:
    """Return the FLOPs of one layer; exact where the counts are integers.

    Args:
        spec: Sizes of the decoder.
        tokens: Tokens that it hands on.
        attending: Tokens that its attention has; None: the same.
    """
    entered = tokens if attending is None else attending
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    projections = 4 * entered * spec.width * (queries + keys)
    attention = 4 * entered * entered * queries
    mlp = 6 * tokens * spec.width * spec.mlp_width
    return projections + attention + mlp


def own_score_flops(spec: DecoderSpec, tokens: float) -> float:
    """Return what a layer computes a second time to score a cut in front of it: k of all tokens there, and q of one.

    Args:
        spec: Sizes of the decoder.
        tokens: Tokens in front of the cut.
    """
    return 2 * spec.width * spec.head_dim * (tokens * spec.kv_heads + spec.heads)


def kv_bytes(lengths: Sequence[float], *, kv_heads: int, head_dim: int, bytes_per_value: int = HALF) -> float:
    """Return the size of a key/value cache in bytes: ``4 n L d`` where all layers keep n tokens in half precision.

    Args:
        lengths: Tokens in each layer's cache; they differ behind a cut inside the decoder.
        kv_heads: Key/value heads (G).
        head_dim: Width of a head (D).
        bytes_per_value: 2 for float16 and bfloat16, 4 for float32.
    """
    return 2 * bytes_per_value * kv_heads * head_dim * sum(lengths)
