"""What an export is asked for, and what it reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lmmprune.compiler.bundle.manifest import Manifest
from lmmprune.compiler.export.dynamic_counts import DynamicCounts
from lmmprune.compiler.export.values import Int4, Int8, Tiles, Tokens
from lmmprune.defaults import METHOD

if TYPE_CHECKING:
    from lmmprune.passes.methods import Method

Pair = tuple[int, int]
STREAMS = ("write vision", "write decoder", "checksums")
"""Steps whose progress is in bytes."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; see ``lmmprune export --help``.

    ``image_size`` (height and width) and ``tiles`` (rows and columns) may be several, one vision graph for each.
    ``frames`` is of how many frames a prompt's video is; None: prompts are about pictures. ``images`` is how many
    pictures a prompt may have at most; with ``joint`` it has so many, and tokens are chosen among all of them together.
    ``batch`` is how many questions are answered at once. ``tokens`` None removes none; with ``int8`` and ``int4`` None
    nothing is quantized, and both exclude each other. The pictures of ``calibration`` (None: built-in ones) serve all:
    ``int8`` for ranges, ``int4`` for rounding, ``Auto`` and ``Buckets`` for counts, and a few of the user's tell what
    is lost (``judge`` False: they don't).
    """

    model: str
    output: Path
    method: str | Method = METHOD
    options: Mapping[str, str] = field(default_factory=dict)
    tokens: Tokens | None = None
    int8: Int8 | None = None
    int4: Int4 | None = None
    calibration: Path | None = None
    calibration_samples: int = 32
    judge: bool = True
    dtype: str | None = None
    target: str = "ort-cpu"
    positions: str | None = None
    weights: str = "auto"
    layers: int | None = None
    image_size: Pair | tuple[Pair, ...] | None = None
    tiles: Tiles | None = None
    images: int = 1
    frames: int | None = None
    joint: bool = False
    batch: int = 1
    method_file: Path | None = None
    share_weights: bool = False
    adapter: Path | None = None
    static_cache: int | None = None
    resume: bool = False
    cache: bool = True
    template: str | None = None
    force: bool = False

    @property
    def image_sizes(self) -> tuple[Pair, ...]:
        """The sizes that were asked for, in their order; none: the model's own."""
        given = self.image_size or ()
        pairs = (given,) if given and isinstance(given[0], int) else given
        return tuple((int(height), int(width)) for height, width in pairs)


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
