"""What the stages share: sizes, rounds, folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmprune.compiler.flops.formula import TEXT_TOKENS
from lmmprune.models.family import DecoderSpec

RATIOS = (0.0, 0.5, 0.9)
VISUAL_TOKENS = 576
ANSWER_TOKENS = 64
"""Places of a fixed cache behind the unpruned prompt."""

Save = Callable[[dict[str, Any]], None]
"""Keeps what a stage has found so far, so that a crash in its next step doesn't take it along."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """``work`` holds bundles (those that are there are used); ``layers`` is the depth at LLaVA-7B's width."""

    work: Path
    quick: bool = False
    layers: int = 4

    @property
    def rounds(self) -> int:
        """Rounds that are timed."""
        return 3 if self.quick else 20

    @property
    def spec(self) -> DecoderSpec:
        """LLaVA-1.5-7B's decoder at this depth."""
        return dataclasses.replace(LLAVA_7B, layers=self.layers)


LLAVA_7B = DecoderSpec(
    layers=32,
    width=4096,
    mlp_width=11008,
    heads=32,
    kv_heads=32,
    head_dim=128,
    vocabulary=32064,
    max_positions=4096,
)


def length(ratio: float, visual: int = VISUAL_TOKENS) -> int:
    """Return the tokens of a prompt of which this part of the visual tokens was removed."""
    return visual - round(ratio * visual) + TEXT_TOKENS


def variant_name(ratio: float, *, int8: bool, fixed: bool = False) -> str:
    """Return ``baseline``, ``pruned 0.5``, ``int8`` or ``pruned 0.5 + int8``; a fixed cache is said behind it."""
    parts = [f"pruned {ratio:g}"] if ratio else []
    return (" + ".join(parts + ["int8"] * int8) or "baseline") + ", fixed cache" * fixed
