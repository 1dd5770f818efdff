"""Layer by layer, from shallow to deep, the least visual tokens that keep the loss.

Reference: G-Search, 2024, arXiv 2412.00556: greedy from shallow to deep layers, the least number per layer found by
halving. Ours: layers are at most eight, counts are multiples of N/16, and the i-th of m layers may use i/m of the loss.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.tune.candidate import Candidate
from lmmprune.compiler.tune.cell import Scores
from lmmprune.compiler.tune.measure import Lab
from lmmprune.facts import Facts
from lmmprune.passes.methods import Method

_LAYERS = 8
_STEPS = 16

Loss = Callable[[Scores], float]


def sites_to_search(method: type[Method], facts: Facts) -> list[str]:
    """Return where the method may cut in the decoder, at most eight places, from shallow to deep; none if nowhere."""
    kinds = [kind for kind in method.movable if kind.startswith("llm")]
    layers = range(1, facts.decoder_layers)
    if not kinds or not layers:
        return []
    every = -(-len(layers) // _LAYERS)
    return [f"{kinds[0]}_{layer}" for layer in layers[::every]]


def trials(sites: Sequence[str]) -> int:
    """Return how many exports a search takes at most."""
    return len(sites) * _STEPS.bit_length()


def search_schedule(
    lab: Lab,
    start: Candidate,
    sites: Sequence[str],
    tokens: int,
    examples: Sequence[Question],
    loss: Loss,
    most: float,
    on_trial: Callable[[], None] = lambda: None,
) -> Candidate | None:
    """Return the candidate with the schedule that was found; None where nothing may go.

    Args:
        lab: Where it is measured; trials leave their records, so that a killed search goes on.
        start: Method, options, positions and precision.
        sites: From shallow to deep.
        tokens: N.
        examples: What the loss is measured on.
        loss: Of a record, in the unit of ``most``.
        most: The loss that is allowed.
        on_trial: Called before each trial.
    """
    step = max(1, tokens // _STEPS)
    found: list[tuple[str, int]] = []
    before = tokens

    def keeps(count: int, allowed: float) -> bool:
        on_trial()
        trial = dataclasses.replace(start, ratio=0.0, schedule=(*found, (site, count)))
        cell = lab.score(trial, examples)
        shutil.rmtree(lab.bundle(trial), ignore_errors=True)
        return cell.refused is None and loss(cell.tuning) <= allowed

    for place, site in enumerate(sites, 1):
        allowed = most * place / len(sites)
        # Counts below ``least`` lose too much; ``best`` is known to do, as no cut does.
        choices = [*range(step, before, step)]
        low, high = 0, len(choices)
        while low < high:
            middle = (low + high) // 2
            if keeps(choices[middle], allowed):
                high = middle
            else:
                low = middle + 1
        if high < len(choices):
            found.append((site, choices[high]))
            before = choices[high]
    return dataclasses.replace(start, ratio=0.0, schedule=tuple(found)) if found else None
