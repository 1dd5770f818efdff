"""The places where tokens can be cut, by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lmmprune.errors import InputError

Kind = Literal["vision_layer", "vision_output", "projector_output", "llm_input", "llm_layer"]
# The way of the data: sorting by it (and by the layer) gives the order in which a token meets the sites.
_ORDER = {"vision_layer": 0, "vision_output": 1, "projector_output": 2, "llm_input": 3, "llm_layer": 3}


@dataclass(frozen=True, kw_only=True)
class Site:
    """One place of the two graphs; ``layer`` counts from 0 and is 0 where the kind has no layers.

    ========================  ==========================================================================
    ``vision_layer_l``        in encoder layer l, between attention + residual and the MLP
    ``vision_output``         between encoder and projector
    ``projector_output``      behind the projector
    ``llm_input_0``           in front of the decoder's first layer, where image and text are merged: no attention; a
                              graph of its own chooses
    ``llm_input_l``           before decoder layer l >= 1; scored by the attention of layer l - 1
    ``llm_layer_l``           in decoder layer l, between attention + residual and the MLP
    ========================  ==========================================================================
    """

    kind: Kind
    layer: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind.endswith("output") else f"{self.kind}_{self.layer}"

    @property
    def in_decoder(self) -> bool:
        """Whether the site lies behind the merge of image and text."""
        return self.kind.startswith("llm")

    @property
    def before_layers(self) -> bool:
        """Whether the site lies behind that merge and in front of all layers: a graph of its own chooses there."""
        return self.kind == "llm_input" and self.layer == 0

    @property
    def depth(self) -> tuple[int, int, bool]:
        """Sort key along the way of the data."""
        return _ORDER[self.kind], self.layer, self.kind == "llm_layer"

    @property
    def scored_layer(self) -> int:
        """The decoder layer whose attention is scored at a site in the decoder; -1: there is none before the site."""
        return self.layer - 1 if self.kind == "llm_input" else self.layer


VISION_OUTPUT = Site(kind="vision_output")
PROJECTOR_OUTPUT = Site(kind="projector_output")


def vision_layer(layer: int) -> Site:
    """Return the site in an encoder layer."""
    return Site(kind="vision_layer", layer=layer)


def llm_input(layer: int) -> Site:
    """Return the site before a decoder layer."""
    return Site(kind="llm_input", layer=layer)


def llm_layer(layer: int) -> Site:
    """Return the site in a decoder layer."""
    return Site(kind="llm_layer", layer=layer)


def parse_site(text: str) -> Site:
    """Return the site of a name such as ``llm_layer_4``.

    Raises:
        InputError: No such site.
    """
    if text in ("vision_output", "projector_output"):
        return Site(kind=text)  # type: ignore[arg-type]  # just compared with the literals
    match = re.fullmatch(r"(vision_layer|llm_input|llm_layer)_([0-9]{1,4})", text)
    if not match:
        raise InputError(
            f"no site '{text}': expected vision_layer_L, vision_output, projector_output, llm_input_L or llm_layer_L"
        )
    return Site(kind=match[1], layer=int(match[2]))  # type: ignore[arg-type]  # the pattern allows these only
