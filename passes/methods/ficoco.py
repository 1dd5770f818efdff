"""FiCoCo: filter, correlate, compress, in the encoder (V), in the decoder (L), or in both (VL)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.find.sites import Site, llm_layer, vision_layer
from lmmprune.passes.methods.method import Method, fraction, in_paper, one_of
from lmmprune.passes.methods.tome import even_removal
from lmmprune.passes.reduce.affinities import attention_affinity, decoder_affinity, logit_affinity
from lmmprune.passes.reduce.encoder_redundancy import attention_redundancy, local_penalty, logit_redundancy
from lmmprune.passes.reduce.filters import decoder_redundancy
from lmmprune.passes.reduce.rules import Outcome, Reduce, ReductionRule, targets
from lmmprune.passes.reduce.schedule import Counts, average, round_half_up, scaled, solve, unreachable
from lmmprune.passes.reduce.site_context import SiteContext
from lmmprune.passes.reduce.stage import Stage

_REFERENCE = "arXiv 2411.17686"


@dataclass(frozen=True, kw_only=True)
class FiCoCoV(Method):
    """Drop redundant patches, or merge them into related ones, layer by layer, in the encoder.

    ``s_i = lambda * mean_{j patch} A_ij - (1 - lambda) * A[CLS,i]``, A the head mean of the layer's attention, with a
    local penalty on a 2x2 grid. ``targets``: ``quantile`` merges each redundant patch into the kept ones whose affinity
    ``A_ij`` reaches the ``eps`` quantile, ``0`` drops it, ``auto`` drops where the quantile leaves one target.
    ``score=logits`` takes head-mean logits of unit length instead of A, as the released code does. ``first_layer``
    counts on an encoder of 23 layers.

    Reference: Han et al., FiCoCo, 2024, arXiv 2411.17686 (paper; slips of the released code not copied).
    """

    lambda_: float = 0.35
    eps: float = 0.998
    targets: Literal["auto", "0", "quantile"] = "auto"
    score: Literal["attention", "logits"] = "attention"
    window: int = 2
    coefficient: float = 2.0
    first_layer: int = 12

    name = "ficoco-v"
    reference = _REFERENCE
    exactness = (
        "the paper's score, and with targets=quantile its merging, exactly; by default tokens are dropped where merging"
        " would leave one target [ours]; removals spread evenly over its layers"
    )
    sites = "vision_layer_12..22"
    schedule = "N - T removed evenly"

    def check(self, model: Facts) -> None:
        """Check the constants."""
        super().check(model)
        for name in ("lambda_", "eps"):
            fraction(name, getattr(self, name), zero=True)
        for name in ("targets", "score"):
            one_of(type(self), name, getattr(self, name))
        in_paper("first_layer", self.first_layer, 23)
        if self.window < 1 or not 0 < self.coefficient < math.inf:
            raise InputError(f"window={self.window}, coefficient={self.coefficient:g}: expected positive numbers")

    def filter(self, at: SiteContext) -> ir.Value:
        """Return the redundancy with the local penalty."""
        redundancy = attention_redundancy if self.score == "attention" else logit_redundancy
        return local_penalty(at, redundancy(at, share=self.lambda_), window=self.window, coefficient=self.coefficient)

    def rule(self) -> ReductionRule:
        """Filter, and correlate and compress where dropped patches go into others."""
        return self._reduce

    def _reduce(self, at: SiteContext, keep: int) -> Outcome:
        merges = self.targets == "quantile" or (self.targets == "auto" and targets(keep, self.eps) > 1)
        affinity = attention_affinity if self.score == "attention" else logit_affinity
        rule = Reduce(filter=self.filter, redundancy=True, correlate=affinity if merges else None, epsilon=self.eps)
        return rule(at, keep)

    def counts(self, model: Facts, target: int) -> Counts:
        """An even share per layer."""
        first = scaled([self.first_layer], depth=model.encoder_layers, of=23)[0]
        sites = [vision_layer(layer) for layer in range(first, model.encoder_layers)]
        return even_removal(sites, model.tokens, target)


@dataclass(frozen=True, kw_only=True)
class FiCoCoL(Method):
    """Merge redundant visual tokens into related ones, layer by layer, in the decoder.

    ``s_i = beta * mean_{j visual} A_ij - (1 - beta) * mean_{k text} A_ki``, affinity ``gamma * A_ij + (1 - gamma) *
    mean_k A_ki A_kj``, A the causal head mean. ``first_layer`` counts on a decoder of 32 layers.

    Reference: Han et al., FiCoCo, 2024, arXiv 2411.17686 (paper).
    """

    beta: float = 0.6
    gamma: float = 0.6
    eps: float = 0.998
    first_layer: int = 5

    name = "ficoco-l"
    reference = _REFERENCE
    exactness = "exact to the paper but for the text terms, which use text queries on visual keys [ours]"
    published_positions = "contiguous"
    sites = "llm_layer_5..31"
    schedule = "an even number per layer, at least 1 left"
    movable = ("llm_layer",)

    def check(self, model: Facts) -> None:
        """Check the constants."""
        super().check(model)
        for name in ("beta", "gamma", "eps"):
            fraction(name, getattr(self, name), zero=True)
        in_paper("first_layer", self.first_layer, 32, least=1)
        if model.decoder_layers < 2:
            raise InputError(
                f"method '{self.name}' scores decoder layers behind the first one, and this decoder has one layer: use"
                " a method that cuts at the vision output or in the encoder"
            )
        if self.gamma == 1:
            raise InputError(
                "gamma=1 gives tokens that see no kept one before them no affinity at all: give less than 1"
            )

    def rule(self) -> ReductionRule:
        """Filter, correlate, compress."""
        return Reduce(
            filter=functools.partial(decoder_redundancy, share=self.beta),
            redundancy=True,
            correlate=functools.partial(decoder_affinity, direct=self.gamma),
            epsilon=self.eps,
        )

    def counts(self, model: Facts, target: int) -> Counts:
        """A slope."""
        return self.slope(self.name, model, target, model.tokens, ())

    def slope(self, name: str, model: Facts, target: int, tokens: int, before: Counts) -> Counts:
        """Return counts that fall from ``tokens`` by a slope, behind those of the encoder."""
        first = scaled([self.first_layer], depth=model.decoder_layers, of=32, first=1)[0]

        def fall(knob: float) -> Counts:
            step = (1 - knob) * tokens
            kept = (max(1, round_half_up(tokens - (i + 1) * step)) for i in range(model.decoder_layers - first))
            return [*before, *((llm_layer(first + i), keep) for i, keep in enumerate(kept))]

        return solve(name, fall, model, target, low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class FiCoCoVL(Method):
    """FiCoCo-V in the encoder, then FiCoCo-L in the decoder; ``split`` is the encoder's share of what is removed.

    ``targets`` and ``score`` are FiCoCo-V's.

    Reference: Han et al., FiCoCo, 2024, arXiv 2411.17686 (paper).
    """

    split: float = 0.5
    lambda_: float = 0.35
    beta: float = 0.6
    gamma: float = 0.6
    eps: float = 0.998
    targets: Literal["auto", "0", "quantile"] = "auto"
    score: Literal["attention", "logits"] = "attention"

    name = "ficoco-vl"
    reference = _REFERENCE
    exactness = "as its parts; the split of the budget is ours"
    published_positions = "contiguous"
    sites = "vision_layer_12..22, llm_layer_5..31"
    schedule = "split * (N - T) in the encoder, the rest in the decoder"

    def _parts(self) -> tuple[FiCoCoV, FiCoCoL]:
        return (
            FiCoCoV(lambda_=self.lambda_, eps=self.eps, targets=self.targets, score=self.score),
            FiCoCoL(beta=self.beta, gamma=self.gamma, eps=self.eps),
        )

    def check(self, model: Facts) -> None:
        """Check the constants."""
        super().check(model)
        fraction("split", self.split, zero=True)
        for part in self._parts():
            part.check(model)

    def counts(self, model: Facts, target: int) -> Counts:
        """Those of both parts."""
        try:
            return self._counts(model, target)
        except InputError:
            # The encoder's part changes with the target, so the fewest tokens aren't where this one's slope ends.
            for least in range(target + 1, model.tokens):
                try:
                    found = self._counts(model, least)
                except InputError:
                    continue
                raise unreachable(self.name, model, target, average(found, model)) from None
            raise

    def _counts(self, model: Facts, target: int) -> Counts:
        vision, language = self._parts()
        between = model.tokens - round_half_up(self.split * (model.tokens - target))
        before = vision.counts(model, between) if between < model.tokens else []
        return language.slope(self.name, model, target, between, before)

    def stage(self, site: Site, keep: int) -> Stage:
        """Return what the part does that the site belongs to."""
        vision, language = self._parts()
        return (language if site.in_decoder else vision).stage(site, keep)
