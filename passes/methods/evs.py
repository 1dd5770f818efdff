"""Efficient Video Sampling: the tokens that changed most since the frame before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.find.sites import PROJECTOR_OUTPUT
from lmmprune.passes.methods.method import Method
from lmmprune.passes.reduce.filters import normalized
from lmmprune.passes.reduce.site_context import SiteContext
from lmmprune.passes.reduce.stage import Stage

# Of a token of the first frame: more than any change, which is 2 at most.
_FIRST = np.float32(255)


@dataclass(frozen=True, kw_only=True)
class Evs(Method):
    """Keep all tokens of a video's first view, and those that differ most from the ones at their place a view before.

    One minus the cosine of the projected features of both; over the whole clip, so that a view of which nothing moved
    may keep nothing.

    Reference: Bagrov et al., Efficient Video Sampling, 2025, arXiv 2510.14624; as serving engines compute it [ours].
    """

    name = "evs"
    reference = "arXiv 2510.14624"
    exactness = "exact for features behind the projector, as serving engines compare them [ours]; K is a static count"
    site = PROJECTOR_OUTPUT
    sites = "projector_output"
    over_time = True

    def filter(self, at: SiteContext) -> ir.Value:
        """Return how much each token changed, ``[B,n]`` float32; those of the first view come before all others."""
        b, views = at.b, at.tiles
        count = at.tokens // views
        unit = normalized(at, at.visual)
        later = b.op("Slice", unit, [count], [at.tokens], [1])
        before = b.op("Slice", unit, [0], [at.tokens - count], [1])
        alike = b.op("ReduceSum", b.op("Mul", later, before), [2], keepdims=0)
        first = b.constant(np.full((at.batch, count), _FIRST, np.float32))
        return b.op("Concat", first, b.op("Sub", np.float32(1), alike), axis=1)

    def stages(self, model: Facts, target: int) -> tuple[Stage, ...]:
        """Refuse fewer tokens than the first view has.

        Raises:
            InputError: So few.
        """
        first = (model.tokens - model.separators) // model.tiles
        if target < first + model.separators:
            most = 1 - (first + model.separators) / model.tokens
            raise InputError(
                f"method 'evs' keeps all {first + model.separators} tokens of the first view and what stands behind the"
                f" last, and {target} of {model.tokens} are to stay: give --ratio {most:.3f} or less"
            )
        return super().stages(model, target)
