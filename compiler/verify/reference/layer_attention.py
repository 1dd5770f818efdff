"""What a layer's attention looks at: queries, keys, logits and probabilities of one picture or one sequence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lmmprune.compiler.verify.reference.sequence import Position


@dataclass
class LayerAttention:
    """Arrays of the model's type; T tokens, H heads, D head width; grouped keys are repeated."""

    q: np.ndarray  # [H,T,D]
    k: np.ndarray  # [H,T,D]
    logits: np.ndarray  # [H,T,T] scale * q.k, before masking
    attention: np.ndarray  # [H,T,T] after masking and softmax

    @property
    def mean_logits(self) -> np.ndarray:
        """[T,T], mean over the heads."""
        return np.asarray(self.logits.mean(axis=0))

    @property
    def mean_attention(self) -> np.ndarray:
        """[T,T], mean over the heads."""
        return np.asarray(self.attention.mean(axis=0))

    @property
    def mean_keys(self) -> np.ndarray:
        """[T,D], mean over the heads."""
        return np.asarray(self.k.mean(axis=0))

    def of(self, tokens: int) -> LayerAttention:
        """Return what the first tokens see of themselves; in a causal layer those behind them change nothing."""
        return LayerAttention(
            self.q[:, :tokens],
            self.k[:, :tokens],
            self.logits[:, :tokens, :tokens],
            self.attention[:, :tokens, :tokens],
        )


def split(x: torch.Tensor, width: int) -> torch.Tensor:
    """[T, H*D] -> [H,T,D]."""
    return x.reshape(len(x), -1, width).transpose(0, 1)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, added: torch.Tensor
) -> tuple[torch.Tensor, LayerAttention]:
    """Mix values by attention.

    Args:
        q: [H,T,D].
        k: [H,T,D].
        v: [H,T,D].
        scale: Of the logits.
        added: [T,T], put on the logits before the softmax.

    Returns:
        The mixed values [T, H*D], and the look.
    """
    # q.k summed channel by channel in one matmul per head, as everywhere; the softmax in the model's own type.
    logits = scale * (q @ k.transpose(1, 2))
    attention = torch.softmax(logits + added, dim=-1)
    mixed = torch.cat(list(attention @ v), dim=-1)
    return mixed, LayerAttention(q.numpy(), k.numpy(), logits.numpy(), attention.numpy())


def vision_attention(module: Any, x: torch.Tensor, sizes: list[float]) -> tuple[torch.Tensor, LayerAttention]:
    """Attention of a ViT's layer on normalized x [T,C]; log(size) of each key's token joins the logits."""
    q, k, v = module.q_proj(x), module.k_proj(x), module.v_proj(x)
    if hasattr(module, "q_norm"):
        q, k = module.q_norm(q), module.k_norm(k)
    q, k, v = (split(rows, module.head_dim) for rows in (q, k, v))
    added = torch.tensor([math.log(size) for size in sizes], dtype=x.dtype).expand(len(sizes), -1)
    mixed, look = attend(q, k, v, module.scale, added)
    out = module.out_proj if hasattr(module, "out_proj") else module.projection_layer
    return out(mixed), look


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each pair (d, d + D/2) of x [H,T,D] by its angle; cos and sin are [T,D]."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


def llama_attention(
    module: Any, rotary: Any, x: torch.Tensor, positions: Sequence[Position]
) -> tuple[torch.Tensor, LayerAttention]:
    """Causal attention of a Llama or Qwen layer on normalized x [T,C] whose tokens have these position numbers."""
    numbers = torch.tensor([positions])
    # With three numbers each, the rotation takes them as [3,B,T].
    cos, sin = (table[0] for table in rotary(x, numbers.permute(2, 0, 1) if numbers.ndim == 3 else numbers))
    q, k = split(module.q_proj(x), module.head_dim), split(module.k_proj(x), module.head_dim)
    if hasattr(module, "q_norm"):
        q, k = rms_norm(module.q_norm, q), rms_norm(module.k_norm, k)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    v = split(module.v_proj(x), module.head_dim)
    group = len(q) // len(k)
    # Query head h reads key head h // group.
    k = torch.stack([k[h // group] for h in range(len(q))])
    v = torch.stack([v[h // group] for h in range(len(q))])
    hidden = torch.ones(len(positions), len(positions), dtype=torch.bool).triu(1)
    added = torch.zeros(hidden.shape, dtype=x.dtype).masked_fill(hidden, -math.inf)
    mixed, look = attend(q, k, v, module.scaling, added)
    return module.o_proj(mixed), look


def rms_norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Llama's norm in x's own type (the module computes in float32 whatever it is given)."""
    weight: torch.Tensor = module.weight
    return weight * (x / torch.sqrt((x * x).mean(-1, keepdim=True) + module.variance_epsilon))
