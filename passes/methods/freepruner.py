"""freePruner: pivotal tokens by contribution, complementary tokens by what the pivots attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from lmmprune.errors import InputError
from lmmprune.passes import scores
from lmmprune.passes.anchors import VisionAnchors
from lmmprune.passes.builder import Builder
from lmmprune.passes.methods.method import Method


@dataclass(frozen=True, kw_only=True)
class FreePruner(Method):
    """Keep ``round(pivot_fraction * K)`` pivots (at least one) and fill up with complements.

    Contribution ``c_j = mean_h sum_{i != j} A^lp[h,i,j]`` at the layer lp that feeds the projector; complement
    ``u_j = mean_h mean_{p in P} A^ls[h,p,j]`` at a shallow layer ls. The defaults were measured on tiny-llava's
    training scenes (docs/freepruner_defaults.md), where the settings differ by less than the error of measurement.

    Reference: Xu et al., freePruner, 2024, arXiv 2411.15446 (abstract; the formulas are our reading of it).
    """

    pivot_fraction: float = 0.75
    shallow_layer: int = 1

    name: ClassVar[str] = "freepruner"
    reference: ClassVar[str] = "arXiv 2411.15446"
    exactness: ClassVar[str] = "our reading of the abstract: both formulas, layers and counts"

    def select(self, b: Builder, anchors: VisionAnchors, keep: int) -> ir.Value:
        """Write pivots and complements."""
        if not 0 < self.pivot_fraction <= 1:
            raise InputError(f"pivot_fraction={self.pivot_fraction:g}: expected 0 < value <= 1")
        if not 0 <= self.shallow_layer < len(anchors.layers):
            raise InputError(
                f"shallow_layer={self.shallow_layer}: the tower has layers 0..{len(anchors.layers) - 1}"
                " before its features"
            )
        pivots = max(1, round(self.pivot_fraction * keep))
        contribution = scores.received_attention(b, anchors.layers[-1], has_cls=anchors.has_cls)
        pivotal = b.ops("TopK", 2, contribution, [pivots], axis=-1)[1]
        if pivots == keep:
            return pivotal
        complement = scores.attention_from(
            b, anchors.layers[self.shallow_layer], pivotal, pivots, has_cls=anchors.has_cls
        )
        rest = scores.exclude(b, complement, pivotal, anchors.tokens)
        complementary = b.ops("TopK", 2, rest, [keep - pivots], axis=-1)[1]
        return b.op("Concat", pivotal, complementary, axis=1)
