"""Methods that drop visual tokens before some decoder layers: FastV, SparseVLM, PyramidDrop."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.find.sites import llm_input
from lmmprune.passes.methods.method import Method
from lmmprune.passes.reduce.filters import last_query, rated_attention
from lmmprune.passes.reduce.schedule import Counts, round_half_up, scaled, solve
from lmmprune.passes.reduce.site_context import SiteContext

# The depth of the decoders in these papers, LLaVA-1.5-7B and Vicuna-7B.
PAPER_DEPTH = 32


@dataclass(frozen=True, kw_only=True)
class FastV(Method):
    """Before decoder layer 2, keep what the prompt's last token attends to in layer 1.

    Reference: Chen et al., FastV, 2024, arXiv 2403.06764 (released code).
    """

    layer: int = 2

    name = "fastv"
    reference = "arXiv 2403.06764"
    exactness = "exact"
    positions = "original"
    sites = "llm_input_2"
    schedule = "K behind its one site"

    def filter(self, at: SiteContext) -> ir.Value:
        """Return what the last token gives."""
        return last_query(at)

    def counts(self, model: Facts, target: int) -> Counts:
        """One count."""
        return stepwise(self.name, model, target, (self.layer,))


@dataclass(frozen=True, kw_only=True)
class SparseVlm(Method):
    """Before layers 2, 6 and 15, keep what text tokens that resemble the picture attend to.

    Reference: Zhang et al., SparseVLM, 2024, arXiv 2410.04417 (released code, v1; without its recycling of tokens).
    """

    layers: tuple[int, ...] = (2, 6, 15)

    name = "sparsevlm"
    reference = "arXiv 2410.04417"
    exactness = "selection exact at a fixed prompt length; counts fall by one factor per stage [ours]"
    sites = "llm_input_2, 6, 15"
    schedule = "a factor per stage"

    def filter(self, at: SiteContext) -> ir.Value:
        """Return what raters give."""
        return rated_attention(at)

    def counts(self, model: Facts, target: int) -> Counts:
        """A factor."""
        return stepwise(self.name, model, target, self.layers)


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(Method):
    """Before layers 8, 16 and 24, keep what the prompt's last token attends to; the paper's factor is one half.

    Reference: Xing et al., PyramidDrop, 2024, arXiv 2410.17247 (released code).
    """

    layers: tuple[int, ...] = (8, 16, 24)

    name = "pyramiddrop"
    reference = "arXiv 2410.17247"
    exactness = "exact but for the layer that is scored, the one before the cut [ours]"
    sites = "llm_input_8, 16, 24"
    schedule = "a factor per stage"

    def filter(self, at: SiteContext) -> ir.Value:
        """Return what the last token gives."""
        return last_query(at)

    def counts(self, model: Facts, target: int) -> Counts:
        """A factor."""
        return stepwise(self.name, model, target, self.layers)


def input_layers(model: Facts, layers: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Return a paper's cuts on a model.

    Raises:
        InputError: The decoder has one layer, and so no place between layers; or the layers make no sense.
    """
    if model.decoder_layers < 2:
        raise InputError(f"method '{name}' cuts between decoder layers, and this decoder has one")
    if not layers or any(not 1 <= layer < PAPER_DEPTH for layer in layers) or list(layers) != sorted(set(layers)):
        listed = ",".join(map(str, layers))
        raise InputError(f"layers {listed}: expected ascending numbers in 1..{PAPER_DEPTH - 1}, on the paper's decoder")
    return scaled(layers, depth=model.decoder_layers, of=PAPER_DEPTH, first=1)


def stepwise(name: str, model: Facts, target: int, layers: tuple[int, ...]) -> Counts:
    """Return counts that fall by the same factor at every cut."""
    sites = [llm_input(layer) for layer in input_layers(model, layers, name)]

    def fall(factor: float) -> Counts:
        return [(site, max(1, round_half_up(model.tokens * factor ** (i + 1)))) for i, site in enumerate(sites)]

    return solve(name, fall, model, target, low=0, high=1)
