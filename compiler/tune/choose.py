"""What came out of a run: finalists with their held-out numbers, and the three that are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmmprune.compiler.measure.statistics import Estimate, estimate, resample_means, speedup
from lmmprune.compiler.tune.budget import Budget
from lmmprune.compiler.tune.candidate import Candidate
from lmmprune.compiler.tune.cell import Cell, Scores
from lmmprune.compiler.tune.race import front, knee

POINTS, KL = "points", "kl"


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A candidate that was measured to the end.

    Attributes:
        label: For people.
        tokens: Visual tokens per decoder layer, on average.
        bytes: The graphs with their weights on disk.
        flops: Over the unpruned model's.
        tuned_loss: On the examples that the choice was made on, in the unit of ``loss``.
        kl: Nats per token, held-out.
        points: Points of accuracy that are lost, held-out; None where no answers are known.
        ttft_ms: Median of the timed rounds.
        ttft: Time to the first token over the unpruned model's, within a round.
        ms_per_token: Of further tokens, over the unpruned model's.
        schedule: Site -> tokens that leave it.
        command: The line that exports it.
        measure: ``points`` or ``kl``: which of them is the loss.
    """

    candidate: Candidate
    label: str
    tokens: float
    bytes: int
    flops: float
    tuned_loss: float
    kl: Estimate
    points: Estimate | None
    ttft_ms: float
    ttft: Estimate
    ms_per_token: Estimate
    schedule: Mapping[str, int]
    command: str
    measure: str

    @property
    def loss(self) -> Estimate:
        """What is lost, in the run's measure."""
        return self.points if self.measure == POINTS and self.points is not None else self.kl

    def keeps(self, budget: Budget) -> bool:
        """Whether it keeps a budget; a loss both on what it was chosen by and on what it is reported on."""
        return self.beyond(budget) <= budget.value

    def beyond(self, budget: Budget) -> float:
        """Return what is to be compared with the budget's value."""
        if budget.of_loss:
            return max(self.tuned_loss, self.loss.value)
        return {"ttft": self.ttft.value, "ttft-ms": self.ttft_ms, "flops": self.flops}[budget.kind]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The three lines at the end, and where no finalist keeps the budget, which comes nearest.

    Attributes:
        fastest: The fastest within the budget.
        faithful: The most faithful within it.
        knee: Where the front of time and loss bends.
        nearest: The finalist that misses the budget by least, where none keeps it.
    """

    fastest: Finalist | None
    faithful: Finalist | None
    knee: Finalist
    nearest: Finalist | None


def losses_of(base: Scores, own: Scores, measure: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return what is lost on every example: points, or nats."""
    if measure == KL:
        return np.array(own.kl, np.float64)
    return 100 * (np.array(base.right, np.float64)[: len(own.right)] - np.array(own.right, np.float64))


def finalist(
    candidate: Candidate, cell: Cell, base: Cell, pictures: Sequence[str], measure: str, command: str
) -> Finalist:
    """Put together what was measured; ``pictures`` are those of the held-out examples."""
    held = {KL: losses_of(base.heldout, cell.heldout, KL)}
    if base.heldout.right:
        held[POINTS] = losses_of(base.heldout, cell.heldout, POINTS)
    means = {
        name: estimate(float(values.mean()), resample_means(values[None], pictures)[:, 0])
        for name, values in held.items()
    }
    ratios = {name: speedup(cell.times[name], cell.times[f"base_{name}"]) for name in ("ttft_ms", "ms_per_token")}
    return Finalist(
        candidate=candidate,
        label=candidate.label,
        tokens=cell.tokens,
        bytes=cell.bytes,
        flops=cell.flops / base.flops,
        tuned_loss=float(losses_of(base.tuning, cell.tuning, measure).mean()),
        kl=means[KL],
        points=means.get(POINTS),
        ttft_ms=float(np.median(cell.times["ttft_ms"])),
        ttft=ratios["ttft_ms"],
        ms_per_token=ratios["ms_per_token"],
        schedule=cell.schedule,
        command=command,
        measure=measure,
    )


def front_of(finalists: Sequence[Finalist]) -> list[Finalist]:
    """Return those that no other one beats in time and loss, the fastest first."""
    times, losses = [one.ttft.value for one in finalists], [one.loss.value for one in finalists]
    return [finalists[place] for place in front(times, losses)]


def choose(finalists: Sequence[Finalist], budget: Budget) -> Choice:
    """Choose among finalists, at least one."""
    best = front_of(finalists)
    bend = best[knee([one.ttft.value for one in best], [one.loss.value for one in best])]
    within = [one for one in finalists if one.keeps(budget)]
    return Choice(
        fastest=min(within, key=lambda one: one.ttft.value, default=None),
        # Where as many answers are right, the one that says them most alike.
        faithful=min(within, key=lambda one: (one.loss.value, one.kl.value, one.ttft.value), default=None),
        knee=bend,
        nearest=None if within else min(finalists, key=lambda one: one.beyond(budget)),
    )
