"""Selection by the attention of the CLS token."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.passes.methods.method import Method
from lmmprune.passes.reduce.filters import cls_attention
from lmmprune.passes.reduce.site_context import SiteContext


@dataclass(frozen=True, kw_only=True)
class Cls(Method):
    """Keep the K patches with the largest ``mean_h A^lp[h,CLS,j]``, lp the layer that feeds the projector.

    Reference: Zhang et al., FasterVLM, 2024, arXiv 2412.01818 (released code).
    """

    name = "cls"
    reference = "arXiv 2412.01818"
    exactness = "exact; tiles compete for K [ours]"
    published_positions = "contiguous"
    needs_cls = True

    def filter(self, at: SiteContext) -> ir.Value:
        """Return what CLS gives each patch."""
        return cls_attention(at)
