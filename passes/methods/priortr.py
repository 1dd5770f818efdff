"""PriorTR: the patches that the question attends to more than a text that asks nothing yet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.facts import Facts
from lmmprune.passes.methods.in_decoder import input_layers, stepwise
from lmmprune.passes.methods.method import Method
from lmmprune.passes.reduce.schedule import Counts
from lmmprune.passes.reduce.site_context import SiteContext

_TINY = np.float32(1e-12)


@dataclass(frozen=True, kw_only=True)
class PriorTr(Method):
    """Before layer 3, keep what tells the text's attention from that of its first token, which knows no question.

    ``s_j = P_j log(P_j / Q_j)``, P the mean attention of the text on the picture, Q that of its first token, each made
    to sum to one.

    Reference: arXiv 2606.24156 (released code).
    """

    layer: int = 3

    name = "priortr"
    reference = "arXiv 2606.24156"
    exactness = (
        "exact in the prefill, as for LLaVA-1.5; logarithms are bounded, caches before the cut stay whole [ours]"
    )
    published_positions = "original"
    sites = "llm_input_3"
    schedule = "K behind its one site"
    tunable = (("layer", "16"),)
    movable = ("llm_input",)

    def filter(self, at: SiteContext) -> ir.Value:
        """Return each token's part of the divergence."""
        b = at.b
        given = at.rows(b.op("ReduceMean", at.attention("text"), at.head_axes, keepdims=0), "visual", 2)
        asked = _shares(at, b.op("ReduceMean", given, [1], keepdims=0))
        prior = _shares(at, b.op("Squeeze", b.op("Slice", given, [0], [1], [1]), [1]))
        logs = [b.op("Log", b.op("Max", part, _TINY)) for part in (asked, prior)]
        return b.op("Mul", asked, b.op("Sub", *logs))

    def counts(self, model: Facts, target: int) -> Counts:
        """One count."""
        return stepwise(self.name, model, target, input_layers(model, (self.layer,), self.name))


def _shares(at: SiteContext, attention: ir.Value) -> ir.Value:
    """Return attention ``[B,n]`` divided by its sum."""
    b = at.b
    return b.op("Div", attention, b.op("Max", b.op("ReduceSum", attention, [1], keepdims=1), _TINY))
