"""What a study found: estimates with intervals, per cell and per pair of float and integers, from the raw results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.measure.statistics import (
    Estimate,
    Floats,
    estimate,
    resample_means,
    retention,
    speed_interaction,
    speedup,
)
from lmmprune.compiler.study.breakdown import Breakdown, break_down
from lmmprune.compiler.study.cell_result import CellResult
from lmmprune.compiler.study.grid import FLOAT, UNPRUNED, Cell
from lmmprune.compiler.study.kept_sets import Overlap
from lmmprune.compiler.study.timing import Group, find_group

TIMES = {"ttft_ms": "time to first token", "ms_per_token": "time per further token"}
_POINTS = 100.0


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Median of the rounds in ms, and how many times faster than the unpruned float model."""

    ms: float
    speedup: Estimate


@dataclass(frozen=True, kw_only=True)
class Row:
    """One cell with what was estimated; a refused one has only its result.

    Attributes:
        cell: Which.
        result: What was measured.
        accuracy: Of whole answers, 0..1.
        first_word: Of first words, 0..1.
        retention: Of the unpruned float model's accuracy; None where that is 0.
        loss: The unpruned float model's accuracy less this one, points.
        parts: The answers taken apart.
        times: Metric of ``TIMES`` -> times.
        on_front: Whether no other cell is both as fast and as accurate, and better in one of them.
    """

    cell: Cell
    result: CellResult
    accuracy: Estimate | None = None
    first_word: Estimate | None = None
    retention: Estimate | None = None
    loss: Estimate | None = None
    parts: Breakdown = dataclasses.field(default_factory=Breakdown)
    times: Mapping[str, Timed]
    on_front: bool = False

    @property
    def speed(self) -> float:
        """How many times faster to the first token than the unpruned float model; untimed, by FLOPs of the prefill."""
        timed = self.times.get("ttft_ms")
        return timed.speedup.value if timed else self.result.flops_before / self.result.prefill_flops

    @property
    def precision(self) -> str:
        """``float32``, ``int8``, ``int4`` or ``int4-gptq``."""
        return self.cell.precision if self.cell.quantized else self.result.dtype


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One method and ratio in floating point and in integers.

    Attributes:
        plain: In floating point.
        quantized: In integers.
        cost: Accuracy in integers less that in floating point, in points.
        interaction: That cost less the integers' cost without pruning, in points; None for the unpruned pair.
        speed: Metric of ``TIMES`` -> speed-up of both over the product of the speed-ups of each; none when unpruned.
        overlaps: Kept sets of one against the other; none for methods that don't tell.
    """

    plain: Row
    quantized: Row
    cost: Estimate
    interaction: Estimate | None
    speed: Mapping[str, Estimate]
    overlaps: tuple[Overlap, ...]

    @property
    def label(self) -> str:
        """Method and ratio, and what the integers are."""
        return f"{self.plain.cell.label} {self.quantized.precision}"

    @property
    def kind(self) -> str:
        """What the integers are, as it stands in a sentence: ``INT8``."""
        return self.quantized.precision.upper()


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A whole study.

    Where nobody knows right answers, an answer counts as right that is the unpruned float model's own.

    Attributes:
        about: Its identity.
        timing: How and where it was timed; None: it wasn't.
        asked_about: For every question in order, what its picture is.
        rows: Every cell, in the order of the grid.
        pairs: A variant in floating point and in integers.
    """

    about: Mapping[str, str]
    timing: Mapping[str, Any] | None
    asked_about: tuple[str, ...]
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]

    @property
    def pictures(self) -> int:
        """How many pictures the questions are about."""
        return len(set(self.asked_about))

    @property
    def labelled(self) -> bool:
        """Whether right answers are known."""
        return not any(row.result.fidelity for row in self.measured)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of questions; none where there is only one."""
        return tuple(dict.fromkeys(kind for row in self.measured for kind in row.parts.kinds))

    @property
    def integers(self) -> str:
        """The precisions but floating point, in words: ``INT8``, ``INT8 and INT4``; empty if there are none."""
        return " and ".join(dict.fromkeys(pair.kind for pair in self.pairs))

    @property
    def measured(self) -> tuple[Row, ...]:
        """The cells that weren't refused."""
        return tuple(row for row in self.rows if row.accuracy is not None)

    @property
    def refused(self) -> tuple[Row, ...]:
        """The cells that can't be had."""
        return tuple(row for row in self.rows if row.accuracy is None)

    @property
    def front(self) -> tuple[Row, ...]:
        """The Pareto front, the fastest first."""
        rows = [row for row in self.rows if row.on_front]
        return tuple(sorted(rows, key=lambda row: -row.speed))

    @property
    def pruned_pairs(self) -> tuple[Pair, ...]:
        """The pairs that have an interaction."""
        return tuple(pair for pair in self.pairs if pair.interaction is not None)

    def row(self, cell: Cell) -> Row:
        """Return the row of a cell."""
        return next(row for row in self.rows if row.cell == cell)


def find(
    results: Mapping[Cell, CellResult],
    questions: Sequence[Question],
    groups: Sequence[Group],
    overlaps: Mapping[str, tuple[Overlap, ...]],
    *,
    about: Mapping[str, str],
    timing: Mapping[str, Any] | None,
) -> Findings:
    """Compute all estimates of a study.

    Args:
        results: Every cell's.
        questions: In the order of their answers.
        groups: What was timed.
        overlaps: Kept sets in floating point against integers, by the name of the cell in integers.
        about: The identity.
        timing: How it was timed.
    """
    measured = [cell for cell, result in results.items() if result.refused is None]
    pictures = [question.picture for question in questions]
    parts = break_down({cell: results[cell] for cell in measured}, questions)
    correct = np.array([results[cell].correct for cell in measured], bool)
    first = np.array([results[cell].first_word for cell in measured], bool)
    resampled, first_resampled = (resample_means(answers, pictures) for answers in (correct, first))
    value = dict(zip(measured, correct.mean(axis=1).tolist(), strict=True))
    draws: dict[Cell, Floats] = {cell: resampled[:, index] for index, cell in enumerate(measured)}
    baselines = [cell for cell in results if cell.method is None]
    rows = {cell: Row(cell=cell, result=results[cell], times={}) for cell in results}
    for index, cell in enumerate(measured):
        rows[cell] = Row(
            cell=cell,
            result=results[cell],
            accuracy=estimate(value[cell], draws[cell]),
            first_word=estimate(float(first[index].mean()), first_resampled[:, index]),
            retention=retention(value[cell], value[UNPRUNED], draws[cell], draws[UNPRUNED]),
            loss=estimate(_POINTS * (value[UNPRUNED] - value[cell]), _POINTS * (draws[UNPRUNED] - draws[cell])),
            parts=parts[cell],
            times=_times(groups, cell, baselines),
        )
    front = _front([rows[cell] for cell in measured])
    rows |= {row.cell: dataclasses.replace(row, on_front=True) for row in front}
    pairs = []
    for cell in measured:
        plain, base = cell.at(FLOAT), UNPRUNED.at(cell.precision)
        if not cell.quantized or plain not in draws:
            continue
        cost, cost_draws = value[cell] - value[plain], draws[cell] - draws[plain]
        alone, alone_draws = value[base] - value[UNPRUNED], draws[base] - draws[UNPRUNED]
        pruned = cell.method is not None
        beyond, beyond_draws = _POINTS * (cost - alone), _POINTS * (cost_draws - alone_draws)
        pairs.append(
            Pair(
                plain=rows[plain],
                quantized=rows[cell],
                cost=estimate(_POINTS * cost, _POINTS * cost_draws),
                interaction=estimate(beyond, beyond_draws) if pruned else None,
                speed=_speed(groups, plain, cell) if pruned else {},
                overlaps=overlaps.get(cell.name, ()),
            )
        )
    return Findings(
        about=about, timing=timing, asked_about=tuple(pictures), rows=tuple(rows.values()), pairs=tuple(pairs)
    )


def _times(groups: Sequence[Group], cell: Cell, baselines: Sequence[Cell]) -> dict[str, Timed]:
    group = find_group(groups, (*baselines, cell))
    if group is None:
        return {}
    found = {}
    for metric in TIMES:
        own = group.samples[cell.name][metric]
        ratio = speedup(group.samples[UNPRUNED.name][metric], own)
        found[metric] = Timed(ms=float(np.median(own)), speedup=ratio)
    return found


def _speed(groups: Sequence[Group], plain: Cell, cell: Cell) -> dict[str, Estimate]:
    four = (UNPRUNED, plain, UNPRUNED.at(cell.precision), cell)
    group = find_group(groups, four)
    if group is None:
        return {}
    return {metric: speed_interaction(*(group.samples[one.name][metric] for one in four)) for metric in TIMES}


def _front(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that no other one dominates in accuracy and in time to the first token."""
    points = [(row, row.accuracy.value, row.speed) for row in rows if row.accuracy]
    return [
        row
        for row, right, fast in points
        if not any(r >= right and f >= fast and (r > right or f > fast) for _, r, f in points)
    ]
