"""What a run is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.tune.budget import Budget
from lmmprune.compiler.tune.candidate import Candidate
from lmmprune.compiler.tune.crew import Crew


@dataclass(frozen=True, kw_only=True)
class TuneRequest:
    """What the user asked for.

    Attributes:
        template: Of what model bundles are made, and for what target.
        budget: What the choice must keep.
        candidates: What is tried.
        tuning: Examples that the choice is made on.
        heldout: Those that it is reported on.
        output: The folder.
        search: Whether to search for a schedule, layer by layer.
        match: When an answer is right.
        max_new_tokens: Answers are cut there.
        rounds: Timed rounds of each finalist.
        threads: Threads within an operator.
        crew: Who works beside the race.
        force: Whether what another run measured in the folder is thrown away.
    """

    template: Request
    budget: Budget
    candidates: Sequence[Candidate]
    tuning: Sequence[Question]
    heldout: Sequence[Question]
    output: Path
    search: bool = True
    match: str = "exact"
    max_new_tokens: int = 16
    rounds: int = 20
    threads: int | None = None
    crew: Crew = field(default_factory=Crew)
    force: bool = False
