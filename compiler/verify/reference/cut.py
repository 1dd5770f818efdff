"""What goes into the reference and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CLS_METHODS = ("cls", "vtc-cls", "inflection", "prumerge", "prumerge+", "vispruner")

# Which sites a method cuts at: the kind of the site's name, without the layer.
SITES = {
    "random": ("vision_output",),
    "uniform": ("vision_output",),
    "cls": ("vision_output",),
    "vtc-cls": ("vision_output",),
    "freepruner": ("vision_output",),
    "inflection": ("vision_output", "llm_input"),
    "prumerge": ("vision_output",),
    "prumerge+": ("vision_output",),
    "visionzip": ("vision_output",),
    "vispruner": ("vision_output",),
    "scope": ("vision_output",),
    "downsample": ("vision_output",),
    "divprune": ("projector_output",),
    "dpp": ("projector_output",),
    "evs": ("projector_output",),
    "ficoco-v": ("vision_layer",),
    "tome": ("vision_layer",),
    "fastv": ("llm_input",),
    "sparsevlm": ("llm_input",),
    "pyramiddrop": ("llm_input",),
    "aim": ("vision_output", "llm_input"),
    "cdpruner": ("llm_input",),
    "mmtok": ("llm_input",),
    "dart": ("llm_input",),
    "priortr": ("llm_input",),
    "v2drop": ("llm_input",),
    "ficoco-l": ("llm_layer",),
    "ficoco-vl": ("vision_layer", "llm_layer"),
}


class CutRefused(ValueError):
    """The reference can't do what it was asked for."""


@dataclass(frozen=True)
class Cut:
    """One place where visual tokens are removed."""

    site: str  # 'vision_layer_3', 'vision_output', 'projector_output', 'llm_input_1', 'llm_layer_2'
    keep: int  # visual tokens that leave this site


@dataclass
class Seen:
    """What the vision side makes of pixel_values [B,3,H,W]."""

    features: np.ndarray  # [B,K,C'] image features that enter the decoder
    # Per vision-side cut, int64 [B,K]: for every visual token left behind that site, in its order there, the index of
    # the original patch whose place it has; -1 for a token that is no patch (CLS, prumerge's added token).
    kept: dict[str, np.ndarray]
    # The smallest relative gap between a chosen and a not chosen score in any selection, inf if there was none.
    margin: float


@dataclass
class Said:
    """What the decoder makes of one picture's features and a prompt."""

    kept: dict[str, np.ndarray]  # per decoder-side cut, int64 [K]: indices into the image tokens that entered, in order
    logits: np.ndarray  # [1 + steps, V] of the prompt's last position and of each greedy decode step
    tokens: list[int]  # the ids generated or followed, 1 + steps
    margin: float  # as in Seen; greedy choices of tokens count too


def check(method: str, cuts: list[Cut], side: str, *, has_cls: bool = True) -> dict[str, int]:
    """Return {site: keep} of one side.

    Args:
        method: Name.
        cuts: The cuts of this side.
        side: 'vision' or 'llm'.
        has_cls: Whether the encoder has a CLS token.

    Raises:
        CutRefused: There is no such method, or it doesn't do this.
    """
    if method not in SITES:
        raise CutRefused(f"no method {method!r}")
    if side == "vision" and method in CLS_METHODS and not has_cls:
        raise CutRefused(f"{method} needs a CLS token")
    sites = {}
    for cut in cuts:
        kind = cut.site.rstrip("0123456789").rstrip("_")
        if kind not in SITES[method] or kind.startswith("llm_") != (side == "llm") or cut.site in sites:
            raise CutRefused(f"{method} has no cut at {cut.site} on the {side} side, or has it twice")
        sites[cut.site] = cut.keep
    return sites


def check_keep(keep: int, arriving: int, site: str) -> None:
    """Check that 1 <= keep <= arriving.

    Raises:
        CutRefused: It isn't.
    """
    if not 1 <= keep <= arriving:
        raise CutRefused(f"{site}: keep {keep} of {arriving}")
