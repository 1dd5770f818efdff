"""A random LLaVA, its pictures and a prompt, and what the reference says to them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from random_llava import random_llava

from lmmprune.compiler.verify.reference import Cut, Said, say

GRID, PREFIX, TAIL, STEPS = 6, [1, 5, 6], [7, 8, 9, 10, 11], 3
N = GRID * GRID


@functools.cache
def model(has_cls: bool, dtype: torch.dtype = torch.float32) -> Any:
    tower = {"grid": GRID, "vision_layers": 4, "vision_heads": 2, "vision_head_dim": 8}
    return random_llava(3, has_cls=has_cls, dtype=dtype, **tower, llm_layers=4, heads=4, kv_heads=2, head_dim=6)


def pixels(pictures: int = 1) -> torch.Tensor:
    return torch.randn(pictures, 3, 4 * GRID, 4 * GRID, generator=torch.Generator().manual_seed(5))


def spoken(
    llava: Any, method: str, cuts: list[Cut], features: np.ndarray, kept: np.ndarray | None = None, **how: Any
) -> Said:
    policy = {"vision": how.pop("vision", "contiguous"), "llm": how.pop("llm", "contiguous")}
    options = how.pop("options", {})
    how = {"steps": STEPS, "patches": N} | how
    return say(llava, method, options, cuts, torch.from_numpy(features), kept, PREFIX, TAIL, positions=policy, **how)
