"""Selection by the attention of the CLS token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from lmmprune.passes import scores
from lmmprune.passes.anchors import VisionAnchors
from lmmprune.passes.builder import Builder
from lmmprune.passes.methods.method import Method
from lmmprune.passes.refusals import Refused


@dataclass(frozen=True, kw_only=True)
class Cls(Method):
    """Keep the K patches with the largest ``mean_h A^lp[h,CLS,j]``, lp the layer that feeds the projector.

    Reference: Zhang et al., FasterVLM, 2024, arXiv 2412.01818 (released code).
    """

    name: ClassVar[str] = "cls"
    reference: ClassVar[str] = "arXiv 2412.01818"
    exactness: ClassVar[str] = "exact"

    def select(self, b: Builder, anchors: VisionAnchors, keep: int) -> ir.Value:
        """Write the selection."""
        if not anchors.has_cls:
            raise Refused("method 'cls' needs a CLS token, and this encoder has none: use 'freepruner'")
        return b.ops("TopK", 2, scores.cls_attention(b, anchors.layers[-1]), [keep], axis=-1)[1]
