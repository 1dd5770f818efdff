"""Draw a study: accuracy, speed, the Pareto front, interactions of pruning and integers with their intervals."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lmmprune.compiler.measure.statistics import Estimate
from lmmprune.compiler.study.chart_style import FEW, Style, Theme, label, note_points, paper, reserve, styles
from lmmprune.compiler.study.findings import Findings, Pair, Row
from lmmprune.compiler.study.lines import draw_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Intervals that are drawn one below the other.
_MOST_ROWS = 30


def draw_retention(findings: Findings, theme: Theme) -> bytes:
    """Return a PNG: accuracy retained over the ratio removed, a line per series."""
    text = "accuracy retained, % of unpruned" if findings.labelled else "answers equal to unpruned, %"
    return _png(draw_lines(findings, theme, lambda row: row.retention, text, factor=100))


def draw_speed(findings: Findings, theme: Theme) -> bytes:
    """Return a PNG: speed-ups to the first token over the ratio removed."""
    return _png(draw_lines(findings, theme, _speedup("ttft_ms"), "speed-up, first token"))


def draw_front(findings: Findings, theme: Theme) -> bytes:
    """Return a PNG: accuracy over time to the first token (or FLOPs), relative to unpruned, with the Pareto front."""
    figure, (axes,) = paper(theme, 4.6)
    looks = styles(row.cell.series for row in findings.rows if row.cell.method)
    few = len(looks) <= FEW
    for row in findings.measured:
        style = looks.get(row.cell.series, Style(colour=theme.ink, marker="p"))
        colour = style.colour if few or row.on_front else theme.pale
        _point(axes, row, colour, style.marker, theme, whiskers=few or row.on_front)
    front = [(100 / row.speed, 100 * row.accuracy.value) for row in findings.front if row.accuracy]
    axes.step([x for x, _ in front], [y for _, y in front], where="post", color=theme.ink, linewidth=1, zorder=1)
    what = "time to first token" if findings.timing else "FLOPs of the prefill"
    hollow = f"\n(hollow: {findings.integers.lower()})" * any(row.cell.quantized for row in findings.measured)
    label(
        axes,
        theme,
        x=f"{what}, % of unpruned{hollow}",
        y="answers right, %" if findings.labelled else "answers equal to unpruned, %",
    )
    names = [row.cell.label + f" {row.precision}" * row.cell.quantized for row in findings.front]
    reserve(figure, names, size=7.5)
    figure.draw_without_rendering()
    note_points(axes, front, names, [theme.ink] * len(front), size=7.5)
    return _png(figure)


def draw_accuracy_interaction(findings: Findings, theme: Theme) -> bytes:
    """Return a PNG: what integers cost on top of pruning less what they cost alone, in points, one row per pair."""
    found = [(pair, pair.interaction) for pair in findings.pruned_pairs if pair.interaction is not None]
    return _forest(found, theme, null=0.0, text=f"pruning x {findings.integers}, accuracy, points")


def draw_speed_interaction(findings: Findings, theme: Theme) -> bytes:
    """Return a PNG: speed-up of both over the product of both, to the first token, one row per pair."""
    found = [(pair, pair.speed["ttft_ms"]) for pair in findings.pruned_pairs if pair.speed]
    return _forest(found, theme, null=1.0, text=f"pruning x {findings.integers}, time to first token, ratio")


def _speedup(metric: str) -> Callable[[Row], Estimate | None]:
    return lambda row: row.times[metric].speedup if row.times else None


def _point(axes: Axes, row: Row, colour: str, marker: str, theme: Theme, *, whiskers: bool) -> None:
    """Draw a cell with its intervals: of accuracy, and of time where it was timed."""
    assert row.accuracy is not None
    x, y, one = 100 / row.speed, 100 * row.accuracy.value, row.accuracy
    if whiskers:
        axes.plot([x, x], [100 * one.low, 100 * one.high], color=colour, linewidth=0.8, alpha=0.7)
        if timed := row.times.get("ttft_ms"):
            ends = [100 / timed.speedup.high, 100 / timed.speedup.low]
            axes.plot(ends, [y, y], color=colour, linewidth=0.8, alpha=0.7)
    face = theme.paper if row.cell.quantized else colour
    size = 6 if whiskers else 3.5
    axes.plot(x, y, marker=marker, color=colour, markerfacecolor=face, markersize=size, linestyle="none")


def _forest(found: Sequence[tuple[Pair, Estimate]], theme: Theme, *, null: float, text: str) -> bytes:
    hidden = ""
    if len(found) > _MOST_ROWS:
        far = sorted(found, key=lambda one: (one[1].contains(null), -abs(one[1].value - null)))[:_MOST_ROWS]
        hidden = f"; the {len(far)} farthest of {len(found)}"
        found = [one for one in found if one in far]
    figure, (axes,) = paper(theme, 1.0 + 0.24 * max(len(found), 2))
    colour = styles(["one"])["one"].colour
    for place, (_, one) in enumerate(found):
        inside = one.contains(null)
        axes.plot([one.low, one.high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
        axes.plot(one.value, place, marker="o", color=colour, markerfacecolor=theme.paper if inside else colour)
    axes.axvline(null, color=theme.ink, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(found)), [pair.label for pair, _ in found], color=theme.ink)
    axes.set_ylim(len(found) - 0.4, -0.6)
    label(axes, theme, x=f"{text}\n(filled: the interval leaves {null:g} out{hidden})")
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


CHARTS: dict[str, tuple[str, Callable[[Findings, Theme], bytes]]] = {
    "retention": ("Accuracy retained over the share of visual tokens removed", draw_retention),
    "speed": ("Speed-up to the first token over the share of visual tokens removed", draw_speed),
    "front": ("Accuracy over cost, and its Pareto front", draw_front),
    "interaction_accuracy": ("Interaction of pruning and integers: accuracy", draw_accuracy_interaction),
    "interaction_speed": ("Interaction of pruning and integers: time to first token", draw_speed_interaction),
}


def charts_for(findings: Findings) -> list[str]:
    """Return the names of the charts that these findings have something to show in."""
    names = ["front"] if findings.front else []
    if any(row.cell.method for row in findings.measured):
        names = ["retention", *["speed"] * bool(findings.timing), *names]
    if findings.pruned_pairs:
        names += ["interaction_accuracy", *["interaction_speed"] * bool(findings.timing)]
    return names
