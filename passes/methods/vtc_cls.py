"""Selection by the attention of the CLS token, summed over layers."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.facts import Facts
from lmmprune.passes.methods.method import Method, in_paper
from lmmprune.passes.reduce.filters import cls_attention
from lmmprune.passes.reduce.schedule import scaled
from lmmprune.passes.reduce.site_context import SiteContext


@dataclass(frozen=True, kw_only=True)
class VtcCls(Method):
    """Keep the K patches with the largest ``sum_l mean_h A^l[h,CLS,j]`` over layers ``first_layer``..lp.

    ``first_layer`` counts on an encoder of 23 layers and is scaled to the model's depth.

    Reference: Wang et al., VTC-CLS, 2024, arXiv 2412.05819 (released code).
    """

    first_layer: int = 16

    name = "vtc-cls"
    reference = "arXiv 2412.05819"
    exactness = "exact from layer 16, which the released code leaves to its caller; other encoders by depth [ours]"
    published_positions = "contiguous"
    needs_cls = True

    def check(self, model: Facts) -> None:
        """Check the layer."""
        super().check(model)
        in_paper("first_layer", self.first_layer, 23)

    def filter(self, at: SiteContext) -> ir.Value:
        """Return what CLS gives each patch in all those layers."""
        first = scaled([self.first_layer], depth=at.depth, of=23)[0]
        total = cls_attention(at.at_layer(first))
        for layer in range(first + 1, at.depth):
            total = at.b.op("Add", total, cls_attention(at.at_layer(layer)))
        return total
