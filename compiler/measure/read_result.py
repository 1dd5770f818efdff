"""Read what a plan's script measured elsewhere, as the report that ``bench`` makes of its own measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmmprune.compiler.measure.board_result import PlannedVariant, Run, read_board_result
from lmmprune.compiler.measure.report import METRICS, BenchReport, Row, Spread, find_products, paired_speedup
from lmmprune.compiler.measure.statistics import speedup
from lmmprune.errors import InputError

_LEAST_ROUNDS = 2  # fewer have no spread
# Stages that the picture takes; a bundle of several token counts has a graph of its bucket behind the encoder.
_PICTURE = ("vision", "bucket")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was measured elsewhere: the report of the variants that were timed in full, and one line per failure."""

    report: BenchReport
    missing: tuple[str, ...]


def import_result(path: Path) -> Imported:
    """Read the JSON file that ``measure.sh`` wrote.

    Times are medians of the GPU's compute time, one per round; the time to the first token is that of the vision
    stages and of the prefill together.

    Args:
        path: The file.

    Raises:
        InputError: It isn't such a file, or no variant was timed in full; the message says what went wrong there.
    """
    found, raw = read_board_result(path)
    plan = found.plan
    stopped = [f"measure.sh was {found.problem}"] if found.status == "interrupted" else []
    missing = (*stopped, *_failures(found.runs))
    rounds = {one.name: _rounds(one, found.runs) for one in plan.variants}
    timed = [one for one in plan.variants if len(rounds[one.name]) >= _LEAST_ROUNDS]
    # Ratios are taken within a round: one that failed for any of them says nothing.
    common = sorted(set.intersection(*(set(rounds[one.name]) for one in timed))) if timed else []
    if len(common) < _LEAST_ROUNDS:
        reasons = "; ".join(dict.fromkeys([*filter(None, [found.problem]), *missing])) or "nothing was timed"
        raise InputError(f"'{path}' holds no variant that was timed in full: {reasons}")
    try:
        samples = [_samples([rounds[one.name][number] for number in common], one.tiles) for one in timed]
    except KeyError as error:
        raise InputError(f"'{path}' says nothing of the stage {error}: give the result.json of measure.sh") from error
    rows = tuple(_row(one, own, samples[0], plan.target) for one, own in zip(timed, samples, strict=True))
    report = BenchReport(
        settings={"rounds": len(common), "seconds": found.seconds, "created": plan.created},
        machine={
            "processor": found.device or "unknown GPU",
            "engine": f"TensorRT {found.version}",
            "trtexec": found.trtexec,
            "target": plan.target,
            **({"power": raw["power"]} if found.power else {}),
        },
        rows=rows,
        products=find_products(rows),
    )
    return Imported(report=report, missing=missing)


def _failures(runs: Sequence[Run]) -> list[str]:
    lines = []
    for run in runs:
        if not run.ok:
            what = f"building {run.component}" if run.kind == "build" else f"timing {run.stage}"
            lines.append(f"{run.variant}: {what} failed: {run.error}")
    return list(dict.fromkeys(lines))


def _rounds(variant: PlannedVariant, runs: Sequence[Run]) -> dict[int, dict[str, float]]:
    """Return round -> stage -> milliseconds, for the rounds in which every stage of the variant was timed."""
    found: dict[int, dict[str, float]] = {}
    for run in runs:
        if run.kind == "time" and run.variant == variant.name and run.gpu_ms is not None and run.ok:
            found.setdefault(run.round, {})[run.stage] = run.gpu_ms
    return {number: times for number, times in found.items() if times.keys() >= set(variant.stages)}


def _samples(rounds: Sequence[Mapping[str, float]], tiles: int) -> dict[str, tuple[float, ...]]:
    """Return the milliseconds by metric, one per round; the vision graph runs for each tile of a picture."""
    picture = [tiles * sum(times[stage] for stage in _PICTURE if stage in times) for times in rounds]
    values = {
        "vision_ms": picture,
        "prefill_ms": [times["prefill"] for times in rounds],
        "ttft_ms": [first + times["prefill"] for first, times in zip(picture, rounds, strict=True)],
        "ms_per_token": [times["decode"] for times in rounds],
    }
    return {metric: tuple(values[metric]) for metric in METRICS}


def _row(
    variant: PlannedVariant,
    own: Mapping[str, tuple[float, ...]],
    first: Mapping[str, tuple[float, ...]],
    target: str,
) -> Row:
    return Row(
        name=variant.name,
        path=variant.name,
        model=variant.model,
        method=variant.method,
        tokens_before=variant.tokens_before,
        image_tokens=variant.image_tokens,
        dtype=variant.dtype,
        int8=variant.int8,
        int4=variant.int4,
        target=target,
        weights_bytes=variant.weights_bytes,
        memory=None,
        samples=dict(own),
        times={metric: Spread.of(values) for metric, values in own.items()},
        speedup={metric: paired_speedup(first[metric], values) for metric, values in own.items()},
        intervals={metric: speedup(first[metric], values) for metric, values in own.items()},
    )
