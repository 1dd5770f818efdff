"""AIM: merging before the decoder, then dropping inside it by a random walk on the attention."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.find.sites import VISION_OUTPUT, Site, llm_input
from lmmprune.passes.methods.in_decoder import behind_layers
from lmmprune.passes.methods.method import Method, in_paper
from lmmprune.passes.methods.tome import pair_up
from lmmprune.passes.reduce.filters import random_walk
from lmmprune.passes.reduce.rules import Outcome, Reduce, ReductionRule, merged
from lmmprune.passes.reduce.schedule import Counts, average, round_half_up, solve
from lmmprune.passes.reduce.site_context import FLOAT, SiteContext
from lmmprune.passes.reduce.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Aim(Method):
    """Merge pairs at the vision output until n0 are left; behind layers 13..20 keep ``1 - i/8`` of n0 by PageRank.

    With ``steps=0`` there is no walk and no cut in the decoder: merging takes it all. The released code walks over the
    whole sequence under the causal mask, masks tokens instead of removing them, the last time all, and merges by the
    keys of the layer behind the features with plain means.

    Reference: Zhong et al., AIM, 2024, arXiv 2412.03248 (released code).
    """

    first_layer: int = 13
    last_layer: int = 20
    temperature: float = 0.1
    steps: int = 5

    name = "aim"
    reference = "arXiv 2412.03248"
    exactness = (
        "our reading: the walk stays within the visual tokens and ignores the causal mask, and one token is left;"
        " merging uses the keys of the features' layer and weighs by size"
    )
    published_positions = "original"
    sites = "vision_output, llm_input_14..21"
    schedule = "n0 by merging, then 1 - i/8 of it"
    movable = ("vision_output", "llm_input")

    def check(self, model: Facts) -> None:
        """Check layers and the walk."""
        super().check(model)
        for name in ("first_layer", "last_layer"):
            in_paper(name, getattr(self, name), 32)
        if not 0 < self.temperature < math.inf or self.steps < 0:
            raise InputError(
                f"temperature={self.temperature:g}, steps={self.steps}: expected a positive number and 0 steps or more"
            )

    def counts(self, model: Facts, target: int) -> Counts:
        """Merging first; with a small ratio, a weaker decoder part alone."""
        if self.steps == 0:
            return [(VISION_OUTPUT, target)]
        layers = tuple(range(self.first_layer, self.last_layer + 1))
        sites = [llm_input(layer) for layer in behind_layers(model, layers, self.name)]
        m = len(sites)

        def fall(n0: int, strength: float) -> Counts:
            kept = (max(1, round_half_up(n0 * (1 - (i + 1) / m * strength))) for i in range(m))
            inside = list(zip(sites, kept, strict=True))
            return [(VISION_OUTPUT, n0), *inside] if n0 < model.tokens else inside

        if average(fall(model.tokens, 1), model) < target:
            return solve(self.name, lambda knob: fall(model.tokens, 1 - knob), model, target, low=0, high=1)
        return solve(self.name, lambda knob: fall(round_half_up(knob), 1), model, target, low=1, high=model.tokens)

    def stage(self, site: Site, keep: int) -> Stage:
        """Return the merging, or a walk with its drop."""
        walk = Reduce(filter=functools.partial(random_walk, temperature=self.temperature, steps=self.steps))
        return Stage(site=site, keep=keep, rule=walk if site.in_decoder else merge_rounds)

    def at_output_only(self) -> Method:
        """Return the merging alone."""
        return dataclasses.replace(self, steps=0)

    def rule_at_output(self) -> ReductionRule:
        """Return the merging."""
        return merge_rounds


def merge_rounds(at: SiteContext, keep: int) -> Outcome:
    """Merge pairs of similar tokens of a list, round by round, until ``keep`` are left; then restore the raster."""
    b = at.b
    keys, x = at.mean_keys(), b.op("Cast", at.visual, to=FLOAT)
    sizes: ir.Value | None = None
    places = b.constant(np.broadcast_to(np.arange(at.tokens, dtype=np.int64), (at.batch, at.tokens)).copy())
    while at.tokens > keep:
        n = at.tokens
        left = max(keep, n - n // 2)
        raster = places if left == keep else None
        outcome = pair_up(at, keys, left, behind_cls=False, sizes=sizes, places=raster)
        assert outcome.merge is not None
        merge = outcome.merge
        x, keys = (
            merged(b, at.gather(value, outcome.kept, left), at.gather(value, merge.dropped, n - left), merge)
            for value in (x, keys)
        )
        places = at.gather_entries(places, outcome.kept, left)
        sizes = outcome.sizes
        at = dataclasses.replace(at, tokens=left)
    received = None if sizes is None else b.op("Sub", sizes, np.float32(1))
    return Outcome(kept=places, tokens=x, received=received, ordered=True)
