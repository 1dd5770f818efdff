"""V2Drop: the patches that a decoder layer changes most."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.facts import Facts
from lmmprune.passes.find.layers import stream_into
from lmmprune.passes.find.sites import llm_input
from lmmprune.passes.methods.in_decoder import input_layers
from lmmprune.passes.methods.method import Method
from lmmprune.passes.reduce.schedule import Counts, average, round_half_up, solve
from lmmprune.passes.reduce.site_context import FLOAT, SiteContext


@dataclass(frozen=True, kw_only=True)
class V2Drop(Method):
    """Before layers 3, 17 and 22, keep the tokens that the layer before moved farthest; the last cut leaves one.

    ``s_j = ||y_j - h_j||``, h what enters the layer and y what it makes of that. It reads no attention.

    Reference: V2Drop, 2025, arXiv 2509.01552 (released code).
    """

    layers: tuple[int, ...] = (3, 17, 22)

    name = "v2drop"
    reference = "arXiv 2509.01552"
    exactness = "scores exact; a factor in place of the paper's halves, and for small ratios the last cut alone [ours]"
    published_positions = "original"
    sites = "llm_input_3, 17, 22"
    schedule = "a factor per stage, one token behind the last"
    tunable = (("layers", "17,22"),)
    movable = ("llm_input",)

    def filter(self, at: SiteContext) -> ir.Value:
        """Return how far each token was moved."""
        b = at.b
        before = at.rows(stream_into(at.layer), "visual", 1)
        moved = b.op("Sub", b.op("Cast", at.visual, to=FLOAT), b.op("Cast", before, to=FLOAT))
        return b.op("ReduceL2", moved, [2], keepdims=0)

    def counts(self, model: Facts, target: int) -> Counts:
        """A factor, or the last stage alone."""
        sites = [llm_input(layer) for layer in input_layers(model, self.layers, self.name)]
        *others, last = sites

        def fall(factor: float) -> Counts:
            return [
                *((site, max(1, round_half_up(model.tokens * factor ** (i + 1)))) for i, site in enumerate(others)),
                (last, 1),
            ]

        if average(fall(1), model) < target:
            return solve(
                self.name, lambda k: [(last, max(1, round_half_up(k)))], model, target, low=1, high=model.tokens
            )
        return solve(self.name, fall, model, target, low=0, high=1)
