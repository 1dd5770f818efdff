"""Schedules: how many visual tokens stay where, so that a decoder layer sees a wanted number on average."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.find.sites import Kind, Site

Counts = Sequence[tuple[Site, int]]


def round_half_up(value: float) -> int:
    """Round to the nearest integer, halves up (Python's own rounding goes to even)."""
    return math.floor(value + 0.5)


def scaled(layers: Sequence[int], *, depth: int, of: int, first: int = 0, last: int | None = None) -> tuple[int, ...]:
    """Return a paper's layer numbers on a model of another depth: clipped to ``first..last``, each once.

    Args:
        layers: Layer numbers of the paper.
        depth: Layers of the model.
        of: Layers of the paper's model.
        first: The lowest layer that the site allows.
        last: The highest; None: the model's last.
    """
    last = depth - 1 if last is None else last
    found = (min(max(round_half_up(layer * depth / of), first), last) for layer in layers)
    return tuple(dict.fromkeys(found))


def layer_tokens(counts: Counts, *, tokens: int, layers: int) -> list[int]:
    """Return the visual tokens that each decoder layer hands on.

    Args:
        counts: (site, tokens that leave it), in order of depth.
        tokens: N.
        layers: L.
    """
    now = tokens
    inside: dict[int, int] = {}
    for site, keep in counts:
        if site.in_decoder:
            inside[site.layer] = keep
        else:
            now = keep
    found = []
    for layer in range(layers):
        now = inside.get(layer, now)
        found.append(now)
    return found


def cached_tokens(counts: Counts, *, tokens: int, layers: int) -> list[int]:
    """Return the visual tokens in each decoder layer's cache: a cut inside a layer comes after its attention."""
    handed_on = layer_tokens(counts, tokens=tokens, layers=layers)
    before = layer_tokens([count for count in counts if not count[0].in_decoder], tokens=tokens, layers=layers)
    inside = {site.layer for site, _ in counts if site.kind == "llm_layer"}
    return [
        (handed_on[layer - 1] if layer else before[0]) if layer in inside else handed_on[layer]
        for layer in range(layers)
    ]


def average(counts: Counts, facts: Facts) -> float:
    """Return the visual tokens that a decoder layer hands on, on average."""
    found = layer_tokens(counts, tokens=facts.tokens, layers=facts.decoder_layers)
    return sum(found) / len(found)


def solve(
    method: str, counts: Callable[[float], Counts], facts: Facts, target: int, *, low: float, high: float
) -> Counts:
    """Return the schedule whose average is nearest to a target.

    Args:
        method: Name, for the refusal.
        counts: The schedule of a knob; its average must not fall as the knob rises.
        facts: The model.
        target: Visual tokens per decoder layer, on average.
        low: Smallest value of the knob.
        high: Largest value.

    Raises:
        InputError: No value of the knob comes within one token.
    """
    for _ in range(64):
        middle = (low + high) / 2
        if average(counts(middle), facts) < target:
            low = middle
        else:
            high = middle
    nearest = min((counts(low), counts(high)), key=lambda found: abs(average(found, facts) - target))
    if abs(average(nearest, facts) - target) > 1:
        raise unreachable(method, facts, target, average(nearest, facts))
    return nearest


def unreachable(method: str, facts: Facts, target: int, least: float) -> InputError:
    """Return the refusal of a target, naming the largest ratio that can be done.

    Args:
        method: Name.
        facts: The model.
        target: Visual tokens per decoder layer that were asked for.
        least: The fewest that the method can do.
    """
    # The largest ratio of two digits whose own target comes within the one token that is allowed.
    percent = math.floor(100 * (1 - (least - 1) / facts.tokens))
    while facts.tokens - round(percent / 100 * facts.tokens) < least - 1:
        percent -= 1
    ratio = percent / 100
    return InputError(
        f"method '{method}' can't bring this model to {target} visual tokens per decoder layer on average:"
        f" the nearest is {least:.1f} of {facts.tokens}; ask for --ratio {ratio:.2f}"
    )


def check_schedule(method: str, kinds: Sequence[Kind], facts: Facts, counts: Counts) -> None:
    """Refuse a schedule that a method can't follow on a model.

    Args:
        method: Name.
        kinds: Of sites that it may cut at.
        facts: The model.
        counts: (site, visual tokens that leave it), in any order.

    Raises:
        InputError: It takes no schedule, no such site, or the counts don't fall within 1..N.
    """
    if not kinds:
        raise InputError(
            f"--schedule: method '{method}' cuts where its paper says; give one that can cut at any decoder layer, such"
            " as fastv"
        )
    if not counts:
        raise InputError('--schedule names no site: give one or more, such as {"llm_input_2": 72}')
    tokens, before = facts.tokens, "the encoder"
    for site, keep in sorted(counts, key=lambda count: count[0].depth):
        # Between layers, a cut is scored by one of them: there must be one before it.
        first, last = int(site.kind == "llm_input"), facts.decoder_layers - 1
        if site.kind not in kinds or (site.in_decoder and not first <= site.layer <= last):
            able = [f"{kind}_{int(kind == 'llm_input')}..{last}" if kind.startswith("llm") else kind for kind in kinds]
            raise InputError(f"--schedule: method '{method}' has no {site} on this model: give {', '.join(able)}")
        if not 1 <= keep <= tokens:
            raise InputError(
                f"--schedule: {keep} tokens are to leave {site}, and {tokens} leave {before}: give 1..{tokens}"
            )
        tokens, before = keep, str(site)
