"""Selections that don't look at the picture: what any method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from lmmprune.passes.anchors import VisionAnchors
from lmmprune.passes.builder import Builder
from lmmprune.passes.methods.method import Method
from lmmprune.passes.shapes import static_shape


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Keep K patches drawn once with a seed; the same for every picture."""

    seed: int = 0

    name: ClassVar[str] = "random"
    reference: ClassVar[str] = "baseline"
    exactness: ClassVar[str] = "exact (a seeded constant)"

    def select(self, b: Builder, anchors: VisionAnchors, keep: int) -> ir.Value:
        """Write a constant."""
        chosen = np.random.default_rng(self.seed).permutation(anchors.tokens)[:keep]
        return _constant(b, anchors, chosen)


@dataclass(frozen=True, kw_only=True)
class Uniform(Method):
    """Keep K patches at an even stride through the raster, ``floor((i + 1/2) * N / K)``."""

    name: ClassVar[str] = "uniform"
    reference: ClassVar[str] = "baseline"
    exactness: ClassVar[str] = "exact (a constant)"

    def select(self, b: Builder, anchors: VisionAnchors, keep: int) -> ir.Value:
        """Write a constant."""
        chosen = ((np.arange(keep) * 2 + 1) * anchors.tokens) // (2 * keep)
        return _constant(b, anchors, chosen)


def _constant(b: Builder, anchors: VisionAnchors, indices: np.ndarray[Any, Any]) -> ir.Value:
    batch = static_shape(anchors.patches)[0]
    return b.constant(np.broadcast_to(indices.astype(np.int64), (batch, len(indices))).copy())
