"""How near one answer's probabilities are to another's: agreement, Kullback-Leibler divergence, likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.compare.record import Recorded
from lmmprune.compiler.measure.statistics import Estimate, estimate, resample_means

_LEAST = 1e-30  # a probability that is nothing gives a large divergence, not an infinite one


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """A bundle on one picture and prompt, led through the base's greedy answer of n tokens.

    Attributes:
        first: Whether both would say the same first token.
        first_kl: Divergence of the first token's probabilities, nats.
        kl: Mean divergence over the n tokens, nats.
        steps: n.
        matched: Tokens before the first one that it would have said otherwise.
        log_likelihood: Of the base's answer, nats, summed over its tokens.
        base_log_likelihood: The same by the base itself.
    """

    first: bool
    first_kl: float
    kl: float
    steps: int
    matched: int
    log_likelihood: float
    base_log_likelihood: float

    @property
    def exact(self) -> bool:
        """Whether its own greedy answer is the base's, token for token."""
        return self.matched == self.steps

    @property
    def prefix(self) -> float:
        """Share of the base's answer before the first difference, 0..1."""
        return self.matched / self.steps


def divergences(base: Recorded, log_probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``KL(base || other)`` of every token, nats ``[n]``.

    ``sum_i p_i (log p_i - log q_i)`` over the k tokens that were kept of the base, and one more term for the others
    together: never more than the divergence over the whole vocabulary, and equal to it where all of it was kept.

    Args:
        base: What the base said.
        log_probabilities: The other's, ``[n,V]``.

    Reference: Kullback and Leibler, 1951; the merged rest is smaller by the log-sum inequality.
    """
    logs = base.log_probabilities.astype(np.float64)
    likely = np.exp(logs)
    other = np.maximum(np.take_along_axis(log_probabilities, base.ids.astype(np.int64), axis=1), np.log(_LEAST))
    # A token that was ruled out has probability 0 and adds nothing.
    terms = np.where(likely > 0, likely * (np.maximum(logs, np.log(_LEAST)) - other), 0)
    found: NDArray[np.float64] = terms.sum(axis=1)
    if base.ids.shape[1] < log_probabilities.shape[1]:
        rest, others = (np.maximum(1 - shares.sum(axis=1), _LEAST) for shares in (likely, np.exp(other)))
        found = found + rest * np.log(rest / others)
    return np.clip(found, 0, None)


def measure_fidelity(base: Recorded, log_probabilities: NDArray[np.float64]) -> Fidelity:
    """Measure what a bundle thought while it was led through the base's answer.

    Args:
        base: What the base said.
        log_probabilities: The other's, ``[n,V]``.
    """
    said = log_probabilities.argmax(axis=1)
    same = said == base.tokens
    kl = divergences(base, log_probabilities)
    return Fidelity(
        first=bool(same[0]),
        first_kl=float(kl[0]),
        kl=float(kl.mean()),
        steps=len(same),
        matched=len(same) if same.all() else int(same.argmin()),
        log_likelihood=float(log_probabilities[np.arange(len(same)), base.tokens].sum()),
        base_log_likelihood=float(base.log_likelihoods.sum()),
    )


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Means over examples with 95 % intervals, pictures drawn again; of perplexity the ratio over all tokens.

    Attributes:
        examples: How many.
        first: Share with the same first token.
        exact: Share with the same answer.
        prefix: Share of the answer before the first difference.
        first_kl: Divergence at the first token, nats.
        kl: Divergence per token of the base's answer, nats.
        perplexity_ratio: Perplexity of the base's answers to the other bundle, over that to the base itself.
    """

    examples: int
    first: Estimate
    exact: Estimate
    prefix: Estimate
    first_kl: Estimate
    kl: Estimate
    perplexity_ratio: Estimate


def summarize(found: Sequence[Fidelity], pictures: Sequence[str]) -> Measures:
    """Return the means of some examples.

    Args:
        found: At least one.
        pictures: For every example, what its picture is.
    """
    plain = ("first", "exact", "prefix", "first_kl", "kl")
    rows = [[float(getattr(one, name)) for one in found] for name in plain]
    lost = [one.base_log_likelihood - one.log_likelihood for one in found]
    values = np.array([*rows, lost, [one.steps for one in found]], np.float64)
    draws, means = resample_means(values, pictures), values.mean(axis=1)
    ratio = estimate(np.exp(means[-2] / means[-1]), np.exp(draws[:, -2] / draws[:, -1]))
    return Measures(
        examples=len(found),
        perplexity_ratio=ratio,
        **{name: estimate(means[row], draws[:, row]) for row, name in enumerate(plain)},
    )
