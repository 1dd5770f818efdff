"""CDPruner: the patches that span the largest volume, each weighted by what it has to do with the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.find.sites import llm_input
from lmmprune.passes.methods.dpp import greedy_map, likeness, weighted
from lmmprune.passes.methods.method import Method, fraction, one_of
from lmmprune.passes.reduce.embedded import other_rows, products, text_rows
from lmmprune.passes.reduce.filters import normalized
from lmmprune.passes.reduce.rules import Outcome, ReductionRule
from lmmprune.passes.reduce.site_context import SiteContext


@dataclass(frozen=True, kw_only=True)
class CdPruner(Method):
    """In front of the decoder, keep tokens that differ from each other and resemble the question.

    Greedy MAP of the kernel ``w_i cos(x_i, x_j) w_j``; ``w = exp(alpha r)``, ``alpha = theta / (2 (1 - theta))``, r the
    cosine with the mean embedding of the text, stretched to 0..1. ``kernel=blend``: ``(1 - theta) S_ij + theta r_i S_ij
    r_j`` and the mean of all text, as OpenVINO GenAI runs it; theta 1 is the released code's kernel. Unrolled into K
    steps.

    Reference: Zhang et al., CDPruner, 2025, arXiv 2506.10967 (released code); the relevance as in OpenVINO GenAI.
    """

    theta: float = 0.5
    kernel: Literal["exp", "blend"] = "exp"

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
        one_of(type(self), "kernel", self.kernel)
        fraction("theta", self.theta, zero=True)
        if self.kernel == "exp" and self.theta == 1:
            raise InputError("theta=1 makes weights without end: give less than 1, or kernel=blend")

    def rule(self) -> ReductionRule:
        """Greedy, weighted by the question."""
        return self._select

    def _select(self, at: SiteContext, keep: int) -> Outcome:
        b = at.b
        relevance, similar = self._relevance(at), likeness(at)
        if self.kernel == "exp":
            weights = b.op("Exp", b.op("Mul", relevance, np.float32(self.theta / (2 * (1 - self.theta)))))
            return greedy_map(at, weighted(at, similar, weights), b.op("Mul", weights, weights), keep)
        plain, share = np.float32(1 - self.theta), np.float32(self.theta)
        asked = b.op("Mul", weighted(at, similar, relevance), share)
        squares = b.op("Mul", b.op("Mul", relevance, relevance), share)
        kernel = b.op("Add", b.op("Mul", similar, plain), asked)
        return greedy_map(at, kernel, b.op("Add", squares, plain), keep)

    def _relevance(self, at: SiteContext) -> ir.Value:
        """Return the cosines with the mean embedding of the text, stretched to 0..1, ``[B,1,n]``."""
        b = at.b
        asked = text_rows(at) if self.kernel == "exp" else other_rows(at)
        mean = normalized(at, b.op("ReduceMean", asked, [1], keepdims=1))
        near = products(at, mean, normalized(at, at.visual))
        least = b.op("ReduceMin", near, [2], keepdims=1)
        span = b.op("Sub", b.op("ReduceMax", near, [2], keepdims=1), least)
        return b.op("Div", b.op("Sub", near, least), b.op("Max", span, np.float32(1e-6)))
