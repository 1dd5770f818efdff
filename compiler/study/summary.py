"""Say in words what the numbers of a study say, and nothing that they don't."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmmprune.compiler.measure.statistics import estimate, resample_means
from lmmprune.compiler.study.findings import TIMES, Findings, Pair, Row
from lmmprune.compiler.study.grid import FLOAT, UNPRUNED, percent
from lmmprune.compiler.study.words import name, points, shares, tenths, times

_FOCUS = 0.5
# What a method must beat: neither looks at the picture.
BASELINES = ("random", "uniform", "downsample")


def summary(findings: Findings) -> str:
    """Return the bullets as one paragraph."""
    return " ".join(bullets(findings))


def bullets(findings: Findings) -> list[str]:
    """Return the verdict, then accuracy, cost of integers, whether they multiply, kept sets and the Pareto front."""
    best = best_at_focus(findings)
    sentences = [_verdict(findings, best)] if best else []
    sentences.append(_unpruned(findings))
    if best:
        sentences += _best(findings, best)
    if findings.pruned_pairs:
        for kind in dict.fromkeys(pair.kind for pair in findings.pruned_pairs):
            pairs = [pair for pair in findings.pruned_pairs if pair.kind == kind]
            sentences += [_accuracy_verdict(pairs), *_speed_verdicts(pairs), *_overlap(pairs)]
    if findings.front:
        front = ", ".join(name(row) for row in findings.front)
        over = "time to the first token" if findings.timing else "FLOPs of the prefill"
        sentences.append(f"Accuracy over {over} has the Pareto front {front}.")
    if findings.refused:
        count = len(findings.refused)
        sentences.append(f"{count} cell{'s' * (count > 1)} of the grid can't be had, for the reasons below.")
    failed = [(row, ", ".join(check.name for check in row.result.failures)) for row in findings.measured]
    if faults := [f"{name(row)} ({checks})" for row, checks in failed if checks]:
        sentences.append(f"Checks FAILED: {', '.join(faults)}.")
    return sentences


def best_at_focus(findings: Findings) -> Row | None:
    """Return the most accurate pruned float cell at the ratio nearest to one half; None if there is none."""
    rows = [row for row in findings.measured if row.cell.ratio and not row.cell.quantized]
    ratio = min((row.cell.ratio for row in rows), key=lambda ratio: (abs(ratio - _FOCUS), ratio), default=None)
    at = [row for row in rows if row.cell.ratio == ratio]
    return max(at, key=lambda row: row.accuracy.value if row.accuracy else 0.0, default=None)


def _verdict(findings: Findings, best: Row) -> str:
    """Say whether the best method is worth its name: whether it beats what costs nothing to choose."""
    ratio = percent(best.cell.ratio)
    plain = [
        row
        for row in findings.measured
        if (row.cell.ratio, row.cell.quantized) == (best.cell.ratio, False) and row.cell.method in BASELINES
    ]
    rival = max(plain, key=lambda row: row.accuracy.value if row.accuracy else 0.0, default=None)
    if rival is None or best.cell.method in BASELINES:
        if rival is not None:
            return f"Verdict: at {ratio} no method does better than {best.cell.series}, which costs nothing to choose."
        return f"Verdict: at {ratio} {best.cell.series} does best; nothing that costs nothing to choose was measured."
    right = np.array([best.result.correct, rival.result.correct], bool)
    draws, means = 100 * resample_means(right, findings.asked_about), 100 * right.mean(axis=1)
    lead = estimate(means[0] - means[1], draws[:, 0] - draws[:, 1])
    beats = "is ahead of" if lead.above(0) else "can't be told from"
    return (
        f"Verdict: at {ratio} {best.cell.series} {beats} {rival.cell.series}, the best of what costs nothing to choose,"
        f" by {points(lead)} points."
    )


def _unpruned(findings: Findings) -> str:
    row = findings.row(UNPRUNED)
    assert row.accuracy is not None
    asked = len(row.result.correct)
    if not findings.labelled:
        return (
            f"No right answers are known: what {findings.about['model']} says unpruned in {row.precision} to {asked}"
            f" questions about {findings.pictures} pictures is the measure."
        )
    return (
        f"Unpruned in {row.precision}, {findings.about['model']} answers {shares(row.accuracy)} % of {asked} questions"
        f" about {findings.pictures} pictures right."
    )


def _best(findings: Findings, best: Row) -> list[str]:
    ratio = percent(best.cell.ratio)
    sentences = []
    what = "of that accuracy" if findings.labelled else "of the answers"
    kept = f"retains {shares(best.retention)} % {what}" if best.retention else ""
    if best.retention is not None:
        sentences.append(
            f"With {ratio} of the visual tokens removed, {best.cell.series} does best of the methods in"
            f" {best.precision}: it {kept}."
        )
    costs = {pair.quantized.cell: pair.cost for pair in findings.pairs}
    for cell in costs:
        if cell.at(FLOAT) == best.cell:
            base = UNPRUNED.at(cell.precision)
            alone = f", and by {points(costs[base])} points without pruning" if base in costs else ""
            kind = cell.precision.upper()
            sentences.append(f"There {kind} changes the accuracy by {points(costs[cell])} points{alone}.")
    if best.times:
        fast = f"{times(best.times['ttft_ms'].speedup)} times as fast to the first token"
        sentences.append(f"In {best.precision} it is {fast} as the unpruned model.")
    return sentences


def _accuracy_verdict(pairs: Sequence[Pair]) -> str:
    found = [(pair, pair.interaction) for pair in pairs if pair.interaction is not None]
    values = [one.value for _, one in found]
    less = [f"{pair.label} ({points(one)})" for pair, one in found if one.below(0)]
    more = [f"{pair.label} ({points(one)})" for pair, one in found if one.above(0)]
    holds = len(found) - len(less) - len(more)
    text = (
        f"What {pairs[0].kind} does to the accuracy of a pruned model differs from what it does to the unpruned one by"
        f" {tenths(min(values))} to {tenths(max(values))} points; the interval contains 0 in {holds} of {len(found)}"
        f" cases (with no interaction anywhere, about {0.95 * len(found):.0f} would)"
    )
    if less:
        text += f"; together they lose more than one after the other for {', '.join(less)}"
    if more:
        text += f"; together they lose less for {', '.join(more)}"
    return text + "."


def _speed_verdicts(pairs: Sequence[Pair]) -> list[str]:
    sentences = []
    for metric, label in TIMES.items():
        found = [pair.speed[metric] for pair in pairs if metric in pair.speed]
        if not found:
            continue
        values = [one.value for one in found]
        less, more = sum(one.below(1) for one in found), sum(one.above(1) for one in found)
        sentences.append(
            f"For the {label}, the speed-up of pruning and {pairs[0].kind} together is {min(values):.2f} to"
            f" {max(values):.2f} times the product of the speed-ups of each; the interval contains 1 in"
            f" {len(found) - less - more} of {len(found)} cases, lies below it in {less} and above it in {more}."
        )
    return sentences


def _overlap(pairs: Sequence[Pair]) -> list[str]:
    last = [pair.overlaps[-1] for pair in pairs if pair.overlaps]
    if not last:
        return []
    lowest = min(last, key=lambda one: one.mean)
    return [
        f"The kept patches in floating point and in {pairs[0].kind} have an intersection over union of"
        f" {lowest.mean:.3f} to {max(one.mean for one in last):.3f} on average over the pictures, method by method;"
        f" the lowest of a single picture is {min(one.lowest for one in last):.3f}."
    ]
