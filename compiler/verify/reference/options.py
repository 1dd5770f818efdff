"""Which hyper-parameters of a method its rule reads; the others say where it cuts and how many tokens stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmmprune.compiler.verify.reference.chooser import round_half_up
from lmmprune.compiler.verify.reference.cut import CutRefused

_VISION, _DECODER = ("lambda_", "eps", "score", "targets"), ("beta", "gamma", "eps")
RULES: dict[str, tuple[str, ...]] = {
    "random": ("seed",),
    "vtc-cls": ("first_layer",),
    "freepruner": ("pivot_fraction", "shallow_layer"),
    "inflection": ("prune_text",),
    "prumerge": ("neighbours",),
    "prumerge+": ("neighbours", "important_fraction"),
    "visionzip": ("dominant_fraction",),
    "vispruner": ("important_fraction",),
    "scope": ("alpha",),
    "aim": ("temperature", "steps"),
    "cdpruner": ("theta", "kernel"),
    "mmtok": ("alpha", "text_temperature", "vision_temperature"),
    "dart": ("form", "image_pivots", "text_pivots"),
    "ficoco-v": (*_VISION, "window", "coefficient"),
    "ficoco-l": _DECODER,
    "ficoco-vl": (*_VISION, *_DECODER),
}
# They are behind the sites and counts, which the reference is given.
SCHEDULE = ("first_layer", "last_layer", "layer", "layers", "llm_layer", "llm_keep", "split")
_PAPER_DEPTH = 23  # encoder layers before the features that numbers of layers count on
_SCALED = {"vtc-cls": "first_layer", "freepruner": "shallow_layer"}


def rule_options(method: str, parameters: Mapping[str, Any], encoder_layers: int) -> dict[str, Any]:
    """Return the options that ``see`` and ``say`` take, from all hyper-parameters of a method.

    Args:
        method: A method of ``SITES``.
        parameters: Its hyper-parameters.
        encoder_layers: V, layers before the features.

    Raises:
        CutRefused: The reference doesn't know one of them.
    """
    rules = RULES.get(method, ())
    if unknown := sorted(parameters.keys() - {*rules, *SCHEDULE}):
        raise CutRefused(f"{method} has no option '{unknown[0]}' here")
    options = {name: value for name, value in parameters.items() if name in rules}
    if (name := _SCALED.get(method)) in options:
        layer = round_half_up(options[name] * encoder_layers / _PAPER_DEPTH)
        options[name] = min(layer, encoder_layers - 1)
    return options
