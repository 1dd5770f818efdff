"""Methods that drop visual tokens before some decoder layers: FastV, SparseVLM, PyramidDrop."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.find.sites import llm_input
from lmmprune.passes.methods.method import Method
from lmmprune.passes.reduce.filters import last_query, rated_attention
from lmmprune.passes.reduce.own_layer import by_next_layer
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
    published_positions = "original"
    sites = "llm_input_2"
    tunable = (("layer", "16"), ("layer", "24"))
    schedule = "K behind its one site"
    movable = ("llm_input",)

    def filter(self, at: SiteContext) -> ir.Value:
        """Return what the last token gives."""
        return last_query(at)

    def counts(self, model: Facts, target: int) -> Counts:
        """One count."""
        return stepwise(self.name, model, target, input_layers(model, (self.layer,), self.name))


@dataclass(frozen=True, kw_only=True)
class SparseVlm(Method):
    """Behind layers 2, 6 and 15, keep what text tokens that resemble the picture attend to there.

    The paper's recycling, which merges the dropped tokens into a few new ones, is left out.

    Reference: Zhang et al., SparseVLM, 2024, arXiv 2410.04417 (released code, v1).
    """

    layers: tuple[int, ...] = (2, 6, 15)

    name = "sparsevlm"
    reference = "arXiv 2410.04417"
    exactness = (
        "selection exact at a fixed prompt length; dropped tokens are not recycled; counts fall by one factor per stage"
        " [ours]"
    )
    published_positions = "contiguous"
    sites = "llm_input_3, 7, 16"
    schedule = "a factor per stage"
    movable = ("llm_input",)

    def filter(self, at: SiteContext) -> ir.Value:
        """Return what raters give."""
        return rated_attention(at)

    def counts(self, model: Facts, target: int) -> Counts:
        """A factor."""
        return stepwise(self.name, model, target, behind_layers(model, self.layers, self.name))


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(Method):
    """Before layers 8, 16 and 24, keep what the prompt's last token would attend to in that very layer.

    Its q of that token and its k of all tokens are computed in front of the cut; the paper's factor is one half.

    Reference: Xing et al., PyramidDrop, 2024, arXiv 2410.17247 (released code).
    """

    layers: tuple[int, ...] = (8, 16, 24)

    name = "pyramiddrop"
    reference = "arXiv 2410.17247"
    exactness = "selection exact; counts fall by one factor per stage, the paper's halves at --ratio 0.53 [ours]"
    published_positions = "contiguous"
    sites = "llm_input_8, 16, 24"
    tunable = (("layers", "16,24"), ("layers", "24"))
    schedule = "a factor per stage"
    movable = ("llm_input",)
    scores_ahead = True

    def filter(self, at: SiteContext) -> ir.Value:
        """Return what the last token gives in the layer behind the cut."""
        return last_query(by_next_layer(at))

    def counts(self, model: Facts, target: int) -> Counts:
        """A factor."""
        return stepwise(self.name, model, target, input_layers(model, self.layers, self.name, own=self.scores_ahead))


def input_layers(model: Facts, layers: tuple[int, ...], name: str, *, own: bool = False) -> tuple[int, ...]:
    """Return a paper's cuts on a model; the layer that is scored is never layer 0.

    Args:
        model: The model.
        layers: Layers of the paper's decoder that the cuts are in front of.
        name: Of the method, for refusals.
        own: Whether a cut is scored by the layer that it is in front of, and not by the one before.

    Raises:
        InputError: The decoder has too few layers for such a cut, or the layers make no sense.
    """
    first = 1 if own else 2
    _check(model, layers, name, first, PAPER_DEPTH - 1, least=first + 1)
    return scaled(layers, depth=model.decoder_layers, of=PAPER_DEPTH, first=first)


def behind_layers(model: Facts, layers: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Return the layers that the cuts are in front of if they are behind those layers of a paper that are scored.

    Args:
        model: The model.
        layers: Layers of the paper's decoder, never layer 0.
        name: Of the method, for refusals.

    Raises:
        InputError: The decoder has too few layers for such a cut, or the layers make no sense.
    """
    _check(model, layers, name, 1, PAPER_DEPTH - 2, least=3)
    depth = model.decoder_layers
    return tuple(layer + 1 for layer in scaled(layers, depth=depth, of=PAPER_DEPTH, first=1, last=depth - 2))


def _check(model: Facts, layers: tuple[int, ...], name: str, first: int, last: int, *, least: int) -> None:
    if model.decoder_layers < least:
        raise InputError(
            f"method '{name}' scores a decoder layer behind the first one, and needs {least} layers for a cut: this"
            f" decoder has {model.decoder_layers}; use a method that cuts at the vision output"
        )
    if not layers or any(not first <= layer <= last for layer in layers) or list(layers) != sorted(set(layers)):
        listed = ",".join(map(str, layers))
        raise InputError(f"layers {listed}: expected ascending numbers in {first}..{last}, on the paper's decoder")


def stepwise(name: str, model: Facts, target: int, layers: tuple[int, ...]) -> Counts:
    """Return counts that fall by the same factor at every cut, in front of these layers of the model."""
    sites = [llm_input(layer) for layer in layers]

    def fall(factor: float) -> Counts:
        return [(site, max(1, round_half_up(model.tokens * factor ** (i + 1)))) for i, site in enumerate(sites)]

    return solve(name, fall, model, target, low=0, high=1)
