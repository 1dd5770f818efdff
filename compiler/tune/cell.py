"""What is known of a candidate, as it lies on disk: it grows from rung to rung, and a killed run goes on with it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmmprune.compiler.bundle.convert import structure
from lmmprune.compiler.study.write_file import write_text
from lmmprune.errors import BundleError
from lmmprune.limits import read_json

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Of one candidate on examples, in their order.

    Attributes:
        kl: Divergence from the unpruned model per token of its answer, nats.
        right: How right the answer is, 0..1; empty where no answers are known.
    """

    kl: tuple[float, ...] = ()
    right: tuple[float, ...] = ()

    def more(self, kl: Sequence[float], right: Sequence[float]) -> Scores:
        """Return these and others behind them."""
        return Scores(kl=(*self.kl, *kl), right=(*self.right, *right))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A candidate's record.

    Attributes:
        name: The candidate's.
        refused: Why it can't be had; None if it can.
        tokens: Visual tokens per decoder layer, on average.
        bytes: The graphs with their weights on disk.
        flops: Of tower and prefill.
        schedule: Site -> tokens that leave it.
        tuning: On the examples that the choice is made on.
        heldout: On the others.
        dropped: Why it left the race; None: it didn't.
        times: Metric -> milliseconds of every timed round, and ``base`` of the unpruned model in the same rounds.
    """

    name: str
    refused: str | None = None
    tokens: float = 0.0
    bytes: int = 0
    flops: float = 0.0
    schedule: Mapping[str, int] = field(default_factory=dict)
    tuning: Scores = Scores()
    heldout: Scores = Scores()
    dropped: str | None = None
    times: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def save(self, folder: Path) -> Cell:
        """Write it, whole or not at all."""
        text = json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, allow_nan=False)
        write_text(folder / f"{self.name}.json", text + "\n")
        return self


def load_cell(folder: Path, name: str) -> Cell:
    """Return what is known of a candidate.

    Raises:
        BundleError: The file was edited, or written by another version.
    """
    file = folder / f"{name}.json"
    if not file.is_file():
        return Cell(name=name)
    try:
        row = read_json(file)
        if row.pop("format") != _FORMAT:
            raise ValueError("another format")
        return structure(row, Cell)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"'{file}' isn't the record of a candidate ({error}): delete it, and it is made again"
        ) from error
