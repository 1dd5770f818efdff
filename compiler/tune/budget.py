"""What a choice must keep: a loss or a cost, and how far measured values are from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmmprune.errors import InputError

Kind = Literal["max-loss", "max-kl", "ttft", "ttft-ms", "flops"]
UNITS: dict[Kind, str] = {
    "max-loss": "points of accuracy lost",
    "max-kl": "nats per token",
    "ttft": "of the unpruned model's time to the first token",
    "ttft-ms": "ms to the first token",
    "flops": "of the unpruned model's FLOPs",
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One limit.

    Attributes:
        kind: Of what.
        value: The most that is allowed.
    """

    kind: Kind
    value: float

    def __post_init__(self) -> None:
        """Refuse what can't be meant.

        Raises:
            InputError: The value is out of its range.
        """
        least_open = self.kind in ("ttft", "ttft-ms", "flops")
        if not (self.value > 0 if least_open else self.value >= 0):
            raise InputError(f"--{self.kind} {self.value:g}: give a number {'above 0' if least_open else '0 or more'}")

    @property
    def of_loss(self) -> bool:
        """Whether it limits a loss, and the fastest is looked for; else the most faithful."""
        return self.kind in ("max-loss", "max-kl")

    @property
    def timed(self) -> bool:
        """Whether only a clock can tell."""
        return self.kind in ("ttft", "ttft-ms")

    def __str__(self) -> str:
        """Say it in words."""
        return f"at most {self.value:g} {UNITS[self.kind]}"


def one_budget(**given: float | None) -> Budget:
    """Return the one that was given.

    Raises:
        InputError: None or several were, or its value makes no sense.
    """
    found = [(name.replace("_", "-"), value) for name, value in given.items() if value is not None]
    if len(found) != 1:
        listed = ", ".join(f"--{kind}" for kind in UNITS)
        named = " and ".join(f"--{name}" for name, _ in found)
        raise InputError(f"{named or 'no budget'}: give one of {listed}")
    name, value = found[0]
    return Budget(kind=next(kind for kind in UNITS if kind == name), value=value)
