"""What the numbers say, in sentences; each is computed from them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from token_ranges.labels import FIRST, NO_FIRST, RATIOS

Rows = Mapping[str, Mapping[str, Any]]
"""Label of an activation -> its numbers."""

_SINK = 3.0
"""A first token that reaches this much further than the median one is called a sink."""
_MUCH = 0.1
"""A token sets a range if it would be narrower by this part without it."""


def findings(results: Mapping[str, Any]) -> list[str]:
    """Return a list in Markdown."""
    plain = results[str(RATIOS[0])]
    said: list[str] = []
    for part in FIRST:
        rows = plain[part]["plain"]
        said += [
            f"{part}: {text}"
            for text in (
                *_widest(rows),
                *_first(part, rows),
                *_one_token(rows),
                *_steps(rows),
                *_smoothing(plain[part]),
            )
        ]
    said += [_pruning(ratio, plain, results[str(ratio)]) for ratio in RATIOS[1:]]
    return [f"* {text}." for text in said]


def _widest(rows: Rows) -> Iterator[str]:
    order = sorted(rows, key=lambda label: -rows[label]["width"])
    named = ", ".join(f"{label} ({rows[label]['width']:.0f})" for label in order[:4])
    yield f"the widest ranges are those of {named}; the median is {_median(rows, 'width'):.0f}"


def _first(part: str, rows: Rows) -> Iterator[str]:
    first = FIRST[part]
    token = {label: data for label, data in _tokens(rows).items() if not label.startswith(NO_FIRST)}
    worst = max(token, key=lambda label: token[label]["first_sets"])
    count = sum(data["first_sets"] > _MUCH for data in token.values())
    most = f", most of {worst} ({token[worst]['first_sets']:.0%})" if count else ""
    yield (
        f"{first} alone sets more than a tenth of the range of {count} of {len(token)} activations{most}; its largest"
        f" value is {_median(token, 'first_over_median'):.2f} times that of the median token (median over activations)"
    )
    sinks = [f"{label} ({d['first_over_median']:.1f})" for label, d in token.items() if d["first_over_median"] > _SINK]
    if sinks:
        yield f"{first} reaches more than {_SINK:.0f} times as far as the median token in {', '.join(sinks)}"


def _one_token(rows: Rows) -> Iterator[str]:
    rows = _tokens(rows)
    worst = max(rows, key=lambda label: rows[label]["one_token_sets"])
    yield (
        f"without the furthest token of each sample, the range of {worst} would be"
        f" {rows[worst]['one_token_sets']:.0%} narrower, that of the median activation"
        f" {_median(rows, 'one_token_sets'):.0%}"
    )
    named = [
        f"{label} ({data['one_token_sets']:.0%}, visual in {data['top_is_visual']:.0%} of the samples)"
        for label, data in rows.items()
        if data["one_token_sets"] > _MUCH
    ]
    if named:
        yield f"single tokens set more than a tenth of the range of {', '.join(named)}"


def _steps(rows: Rows) -> Iterator[str]:
    tokens = _tokens(rows)
    worst = max(tokens, key=lambda label: tokens[label]["one_token_sets"])
    steps = rows[worst]["steps"]
    finer = ", ".join(f"{name} {steps['minmax'] / step:.1f}" for name, step in steps.items() if name != "minmax")
    yield f"times that the step of {worst} is finer than min-max's: {finer}"


def _smoothing(both: Mapping[str, Any]) -> Iterator[str]:
    smoothed = both["smoothed_blocks"]
    if not smoothed:
        return
    before, after = (
        statistics.median(both[kind][label]["top_over_median"] for label in smoothed) for kind in ("plain", "smoothed")
    )
    yield (
        f"SmoothQuant changes {len(smoothed)} activations; there the furthest token reaches {before:.1f} times as far"
        f" as the median one before it, and {after:.1f} times after it"
    )


def _pruning(ratio: float, plain: Mapping[str, Any], pruned: Mapping[str, Any]) -> str:
    change = {
        f"{part} {label}": data["width"] / plain[part]["plain"][label]["width"]
        for part in FIRST
        for label, data in pruned[part]["plain"].items()
    }
    same = sum(abs(value - 1) < 0.005 for value in change.values())
    low, high = min(change, key=lambda key: change[key]), max(change, key=lambda key: change[key])
    return (
        f"{ratio:.0%} of the visual tokens removed: {same} of {len(change)} ranges stay within 0.5 %; the largest"
        f" changes are {change[low]:.2f}x ({low}) and {change[high]:.2f}x ({high})"
    )


def _tokens(rows: Rows) -> Rows:
    """Leave out activations without several tokens."""
    return {label: data for label, data in rows.items() if "first_sets" in data}


def _median(rows: Rows, key: str) -> float:
    return statistics.median(data[key] for data in rows.values())
