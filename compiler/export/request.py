"""What an export is asked for, and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lmmprune.compiler.bundle.manifest import Manifest

if TYPE_CHECKING:
    from lmmprune.compiler.export.count_tokens import DynamicCounts

Progress = Callable[[str, int, int], None]

STREAMS = ("write vision", "write decoder")
"""Steps whose progress is in bytes."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; see ``lmmprune export --help``."""

    model: str
    output: Path
    method: str = "freepruner"
    options: Mapping[str, str] = field(default_factory=dict)
    ratio: float | None = None
    keep: int | None = None
    int8: bool = False
    int8_weights_only: bool = False
    int8_dynamic: bool = False
    int8_policy: str = "all"
    int8_budget: float = 0.05
    keep_float: tuple[str, ...] = ()
    smooth: bool = True
    calibrator: str = "minmax"
    calibration: Path | None = None
    calibration_samples: int = 32
    dtype: str | None = None
    target: str = "ort-cpu"
    positions: str | None = None
    weights: str = "auto"
    layers: int | None = None
    image_size: tuple[int, int] | None = None
    tiles: tuple[int, int] | None = None
    method_file: Path | None = None
    auto: bool = False
    percentile: float = 90.0
    buckets: tuple[float, ...] = ()
    share_weights: bool = False
    adapter: Path | None = None
    static_cache: int | None = None
    resume: bool = False
    cache: bool = True
    template: str | None = None
    force: bool = False

    @property
    def quantizes(self) -> bool:
        """Whether anything becomes INT8."""
        return self.int8 or self.int8_weights_only or self.int8_dynamic


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was done: the manifest, seconds, peak memory in bytes, and what the user should know.

    ``steps`` are the seconds of each step, by the name that ``progress`` was given, in their order.
    ``counts`` are what the method itself would keep of each picture, with ``--ratio auto`` or ``--buckets``.
    """

    manifest: Manifest
    seconds: float
    peak_bytes: int
    warnings: tuple[str, ...]
    steps: Mapping[str, float]
    counts: DynamicCounts | None = None
