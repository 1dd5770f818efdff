"""CDPruner: the patches that span the largest volume, each weighted by what it has to do with the question."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.find.sites import llm_input
from lmmprune.passes.methods.dpp import greedy_map
from lmmprune.passes.methods.method import Method
from lmmprune.passes.reduce.embedded import products, text_rows
from lmmprune.passes.reduce.filters import normalized
from lmmprune.passes.reduce.rules import Outcome, ReductionRule
from lmmprune.passes.reduce.site_context import SiteContext


@dataclass(frozen=True, kw_only=True)
class CdPruner(Method):
    """In front of the decoder, keep tokens that differ from each other and resemble the question.

    Greedy MAP of the kernel ``w_i cos(x_i, x_j) w_j``; ``w = exp(alpha r)``, ``alpha = theta / (2 (1 - theta))``, r the
    cosine with the mean embedding of the text, stretched to 0..1. Unrolled into K steps.

    Reference: Zhang et al., CDPruner, 2025, arXiv 2506.10967 (released code); the relevance as in OpenVINO GenAI.
    """

    theta: float = 0.5

    name = "cdpruner"
    reference = "arXiv 2506.10967"
    exactness = (
        "the choice is exact; relevance by the text's embeddings, as checkpoints lack CLIP's text tower,"
        " with the paper's trade-off for weights [ours]"
    )
    published_positions = "contiguous"
    site = llm_input(0)
    sites = "llm_input_0"

    def check(self, model: Facts) -> None:
        """Check theta."""
        super().check(model)
        if not 0 <= self.theta < 1:
            raise InputError(f"theta={self.theta:g}: expected 0 <= theta < 1")

    def rule(self) -> ReductionRule:
        """Greedy, weighted by the question."""
        return self._select

    def _select(self, at: SiteContext, keep: int) -> Outcome:
        b = at.b
        mean = normalized(at, b.op("ReduceMean", text_rows(at), [1], keepdims=1))
        likeness = products(at, mean, normalized(at, at.visual))
        least = b.op("ReduceMin", likeness, [2], keepdims=1)
        span = b.op("Sub", b.op("ReduceMax", likeness, [2], keepdims=1), least)
        relevance = b.op("Div", b.op("Sub", likeness, least), b.op("Max", span, np.float32(1e-6)))
        alpha = np.float32(self.theta / (2 * (1 - self.theta)))
        return greedy_map(at, b.op("Exp", b.op("Mul", relevance, alpha)), keep)
