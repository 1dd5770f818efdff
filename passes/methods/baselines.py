"""Selections that don't look at the picture: what any method must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.methods.method import Method
from lmmprune.passes.reduce.filters import constant_places
from lmmprune.passes.reduce.rules import Outcome, ReductionRule
from lmmprune.passes.reduce.site_context import SiteContext


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Keep K patches drawn once with a seed; the same for every picture."""

    seed: int = 0

    name = "random"
    reference = "baseline"
    exactness = "exact (a seeded constant)"

    def check(self, model: Facts) -> None:
        """Check the seed."""
        super().check(model)
        if self.seed < 0:
            raise InputError(f"seed={self.seed}: expected 0 or more")

    def rule(self) -> ReductionRule:
        """Keep the first K of a permutation."""

        def keep_some(at: SiteContext, keep: int) -> Outcome:
            return Outcome(kept=constant_places(at, np.random.default_rng(self.seed).permutation(at.tokens)[:keep]))

        return keep_some


@dataclass(frozen=True, kw_only=True)
class Uniform(Method):
    """Keep K patches at an even stride through the raster, ``floor((i + 1/2) * N / K)``."""

    name = "uniform"
    reference = "baseline"
    exactness = "exact (a constant)"

    def rule(self) -> ReductionRule:
        """Keep every so many."""
        return lambda at, keep: Outcome(kept=constant_places(at, even_places(at.tokens, keep)))


def even_places(tokens: int, keep: int) -> np.ndarray:
    """Return ``floor((i + 1/2) * N / K)``, i < K."""
    return ((np.arange(keep) * 2 + 1) * tokens) // (2 * keep)
