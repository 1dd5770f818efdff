"""Limits that a comparison must keep, for CI: what falls short is said in one line each."""

from __future__ import annotations

from dataclasses import dataclass

from lmmprune.compiler.compare.comparison import Comparison
from lmmprune.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What every compared bundle must reach; None: anything will do.

    Attributes:
        min_agreement: Least share of answers that equal the base's, 0..1.
        max_kl: Largest divergence per token, nats.
        max_ttft_ratio: Largest time to the first token over the base's.
    """

    min_agreement: float | None = None
    max_kl: float | None = None
    max_ttft_ratio: float | None = None

    def check(self, *, timed: bool) -> None:
        """Refuse limits that make no sense.

        Args:
            timed: Whether times are taken.

        Raises:
            InputError: One is out of its range, or there will be no time to hold it against.
        """
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise InputError(f"--min-agreement {self.min_agreement:g}: it is a share; give 0 to 1")
        if self.max_kl is not None and not self.max_kl >= 0:
            raise InputError(f"--max-kl {self.max_kl:g}: give nats, 0 or more")
        if self.max_ttft_ratio is not None and not self.max_ttft_ratio > 0:
            raise InputError(f"--max-ttft-ratio {self.max_ttft_ratio:g}: give a ratio above 0")
        if self.max_ttft_ratio is not None and not timed:
            raise InputError("--max-ttft-ratio is held against times: leave out --no-timing")

    def broken(self, comparison: Comparison) -> list[str]:
        """Return a line for each limit that a bundle doesn't keep; the measured value counts, not its interval."""
        lines = []
        for other in comparison.others:
            name, found = other.bundle.name, other.measures
            if self.min_agreement is not None and found.exact.value < self.min_agreement:
                lines.append(f"{name}: {found.exact.value:.1%} of the answers agree, at least {self.min_agreement:.1%}")
            if self.max_kl is not None and found.kl.value > self.max_kl:
                lines.append(f"{name}: the divergence is {found.kl.value:.4g} nats per token, at most {self.max_kl:g}")
            ratio = other.bundle.ratios.get("ttft_ms")
            if self.max_ttft_ratio is not None and ratio is not None and ratio.value > self.max_ttft_ratio:
                lines.append(
                    f"{name}: the first token takes {ratio.value:.3g} of the base's time, at most"
                    f" {self.max_ttft_ratio:g}"
                )
        return lines
