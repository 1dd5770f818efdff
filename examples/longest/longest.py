"""A method of one's own: keep the patches whose feature vectors are longest."""

from dataclasses import dataclass

import onnx_ir as ir

from lmmprune import Method, SiteContext


@dataclass(frozen=True, kw_only=True)
class Longest(Method):
    """Keep the K patches with the largest L-p norm before the projector."""

    p: int = 2

    name = "longest"
    reference = "an example"
    exactness = "exact"

    def filter(self, at: SiteContext) -> ir.Value:
        """Return the score of each patch, ``[B,n]``, written with ONNX operators."""
        return at.b.op(f"ReduceL{self.p}", at.visual, [2], keepdims=0)
