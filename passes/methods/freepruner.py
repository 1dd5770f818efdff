"""freePruner: pivotal tokens by contribution, complementary tokens by what the pivots attend to."""

from __future__ import annotations

from dataclasses import dataclass

from lmmprune.facts import Facts
from lmmprune.passes.methods.method import Method, fraction, in_paper
from lmmprune.passes.reduce.filters import attention_from, exclude, received_attention
from lmmprune.passes.reduce.rules import Outcome, ReductionRule, top
from lmmprune.passes.reduce.schedule import scaled
from lmmprune.passes.reduce.site_context import SiteContext


@dataclass(frozen=True, kw_only=True)
class FreePruner(Method):
    """Keep ``round(pivot_fraction * K)`` pivots (at least one) and fill up with complements.

    Contribution ``c_j = mean_h sum_{i != j} A^lp[h,i,j]`` at the layer lp that feeds the projector; complement
    ``u_j = mean_h mean_{p in P} A^ls[h,p,j]`` at a shallow layer ls, ``shallow_layer`` on an encoder of 23
    layers and scaled to the model's depth. The defaults were measured on training scenes of the two small models
    (docs/results/freepruner_defaults.md).

    Reference: Xu et al., freePruner, 2024, arXiv 2411.15446 (abstract; the formulas are our reading of it).
    """

    pivot_fraction: float = 0.5
    shallow_layer: int = 8

    name = "freepruner"
    reference = "arXiv 2411.15446"
    exactness = "our reading of the abstract: both formulas, layers and counts"

    def check(self, model: Facts) -> None:
        """Check share and layer."""
        super().check(model)
        fraction("pivot_fraction", self.pivot_fraction)
        in_paper("shallow_layer", self.shallow_layer, 23)

    def rule(self) -> ReductionRule:
        """Pivots first, complements outside them."""
        return self._select

    def _select(self, at: SiteContext, keep: int) -> Outcome:
        b = at.b
        pivots = max(1, round(self.pivot_fraction * keep))
        pivotal = top(b, received_attention(at), pivots)
        if pivots == keep:
            return Outcome(kept=pivotal)
        shallow = scaled([self.shallow_layer], depth=at.depth, of=23)[0]
        complement = attention_from(at.at_layer(shallow), pivotal, pivots)
        complementary = top(b, exclude(at, complement, pivotal), keep - pivots)
        return Outcome(kept=b.op("Concat", pivotal, complementary, axis=1))
