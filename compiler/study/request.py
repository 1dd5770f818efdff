"""What a study is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmmprune.compiler.study.settings import Settings
from lmmprune.compiler.study.timing import TimingSettings
from lmmprune.compiler.study.variants import Variants


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """What the user asked for.

    Attributes:
        settings: What all cells share.
        variants: Of methods.
        ratios: Fractions removed.
        precisions: In which every cell is wanted (see ``grid.PRECISIONS``).
        output: The folder.
        workers: Processes on this machine.
        ray: Address of a Ray cluster, to run cells there instead.
        timing: How to time; None: not at all.
        keep_bundles: Whether bundles stay after timing.
        force: Whether what an earlier study measured in the folder is thrown away.
        max_loss: Points of accuracy that the variant to be chosen may lose; None chooses none.
    """

    settings: Settings
    variants: Variants
    ratios: Sequence[float]
    precisions: Sequence[str]
    output: Path
    workers: int
    ray: str | None
    timing: TimingSettings | None
    keep_bundles: bool
    force: bool = False
    max_loss: float | None = None
