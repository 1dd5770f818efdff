"""``result.json`` as a plan's script writes it on a board: every field of its type, every time a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmmprune.compiler.bundle.convert import structure
from lmmprune.compiler.bundle.tile_rules import MOST_TILES
from lmmprune.errors import InputError
from lmmprune.limits import read_json, shortened

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class PlannedVariant:
    """A bundle of the plan, as ``plan.json`` describes it; its vision graph runs on so many ``tiles`` of a picture."""

    name: str
    model: str
    method: str | None
    tokens_before: int
    image_tokens: int | float
    dtype: str
    int8: str | None
    weights_bytes: int
    prompt_tokens: int
    stages: tuple[str, ...]
    int4: int | None = None
    tiles: int = 1


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """What ``plan.json`` says."""

    format: int
    lmmprune: str
    created: str
    target: str
    arch: str | None
    variants: tuple[PlannedVariant, ...]
    commands: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of ``trtexec``: an engine that was built, or a stage that was timed in a round (``gpu_ms``)."""

    kind: str
    variant: str
    ok: bool
    error: str | None
    component: str = ""
    fused_attention: bool = True
    seconds: int | float = 0
    bytes: int = 0
    stage: str = ""
    round: int = 0
    gpu_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class PowerState:
    """What ``power.sh -j`` says; temperatures in degrees C."""

    mode: str | None
    mode_id: int | None
    clocks: dict[str, Any]
    temperatures: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class BoardResult:
    """The file: ``complete``, ``partial``, ``refused`` or ``interrupted``, and every run."""

    format: int
    status: str
    problem: str | None
    trtexec: str
    version: str
    device: str
    rounds: int
    seconds: int | float
    plan: PlanRecord
    runs: tuple[Run, ...]
    power: dict[str, PowerState | None] | None = None


def read_board_result(path: Path) -> tuple[BoardResult, Mapping[str, Any]]:
    """Return what a file says, and what stands in it.

    Raises:
        InputError: It can't be read, isn't such a file, or a number in it makes no sense.
    """
    try:
        raw = read_json(path, finite=True)
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' can't be read ({error}): give the result.json of measure.sh") from error
    if not isinstance(raw, dict) or raw.get("format") != _FORMAT:
        raise InputError(f"'{path}' isn't a result of measure.sh in format {_FORMAT}: give its result.json")
    try:
        found = structure(raw, BoardResult)
        _check(found)
    except ValueError as error:
        raise InputError(f"'{path}' isn't what measure.sh writes ({error}): give its result.json") from error
    return found, raw


def _check(found: BoardResult) -> None:
    for run in found.runs:
        if run.kind not in ("build", "time"):
            raise ValueError(f"a run of the kind {shortened(run.kind)}: expected 'build' or 'time'")
        timed = run.kind == "time" and run.ok
        if timed and (run.gpu_ms is None or not 1e-6 < run.gpu_ms < 1e9):
            raise ValueError(f"gpu_ms is {shortened(run.gpu_ms)}: expected milliseconds")
    for variant in found.plan.variants:
        if not (0 < variant.tokens_before < 2**31 and 0 < variant.image_tokens < 2**31):
            counts = f"{shortened(variant.tokens_before)} and {shortened(variant.image_tokens)}"
            raise ValueError(f"tokens_before and image_tokens are {counts}: expected counts of tokens")
        if not 1 <= variant.tiles <= MOST_TILES:
            raise ValueError(f"tiles is {shortened(variant.tiles)}: expected 1 to {MOST_TILES}")
        if not 0 <= variant.weights_bytes < 2**63:
            raise ValueError(f"weights_bytes is {shortened(variant.weights_bytes)}: expected a size in bytes")
    for state in (found.power or {}).values():
        if state and not all(math.fabs(degrees) < 1e4 for degrees in state.temperatures.values()):
            raise ValueError("a temperature that no board has")
