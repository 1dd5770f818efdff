"""Draw a study: accuracy, speed, the Pareto front, and the interactions of pruning and INT8 with their intervals."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from lmmprune.compiler.measure.statistics import Estimate
from lmmprune.compiler.study.chart_style import Style, Theme, label, legend, paper, styles
from lmmprune.compiler.study.findings import Findings, Pair, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Get = Callable[[Row], Estimate | None]


def draw_retention(findings: Findings, theme: Theme) -> bytes:
    """Return a PNG: accuracy retained over the ratio removed, a line per method; dashed and hollow: INT8."""
    figure, (axes,) = paper(theme, 4.4)
    _lines(axes, findings, lambda row: row.retention, theme, factor=100)
    label(axes, theme, x="visual tokens removed, %", y="accuracy retained, % of unpruned")
    legend(figure, axes, theme)
    return _png(figure)


def draw_speed(findings: Findings, theme: Theme) -> bytes:
    """Return a PNG: speed-ups to the first token and per token over the ratio removed."""
    figure, (first, each) = paper(theme, 6.6, panels=2)
    _lines(first, findings, lambda row: row.times["ttft_ms"].speedup if row.times else None, theme)
    _lines(each, findings, lambda row: row.times["ms_per_token"].speedup if row.times else None, theme)
    label(first, theme, x="", y="speed-up, first token")
    label(each, theme, x="visual tokens removed, %", y="speed-up, further tokens")
    legend(figure, first, theme)
    return _png(figure)


def draw_front(findings: Findings, theme: Theme) -> bytes:
    """Return a PNG: accuracy over time to the first token, relative to unpruned, with the Pareto front."""
    figure, (axes,) = paper(theme, 4.4)
    looks = _looks(findings)
    for row in findings.measured:
        if row.accuracy is None:
            continue
        style = looks.get(row.cell.method or "", Style(colour=theme.ink, marker="p"))
        first = row.cell == _first(findings, row.cell.method).cell
        axes.plot(
            100 / row.speed,
            100 * row.accuracy.value,
            marker=style.marker,
            color=style.colour,
            markerfacecolor=theme.paper if row.cell.int8 else style.colour,
            markersize=7,
            linestyle="none",
            label=(row.cell.method or "unpruned") if first else None,
        )
    fast = [100 / row.speed for row in findings.front]
    right = [100 * row.accuracy.value for row in findings.front if row.accuracy]
    axes.step(fast, right, where="post", color=theme.ink, linewidth=1, zorder=1)
    what = "time to first token" if findings.timing else "FLOPs of the prefill"
    label(axes, theme, x=f"{what}, % of unpruned (hollow: int8)", y="answers right, %")
    legend(figure, axes, theme)
    return _png(figure)


def draw_accuracy_interaction(findings: Findings, theme: Theme) -> bytes:
    """Return a PNG: what INT8 costs on top of pruning less what it costs alone, in points, one row per pair."""
    found = [(pair, pair.interaction) for pair in findings.pruned_pairs if pair.interaction is not None]
    return _forest(found, findings, theme, null=0.0, text="pruning x INT8, accuracy, points")


def draw_speed_interaction(findings: Findings, theme: Theme) -> bytes:
    """Return a PNG: speed-up of both over the product of both, to the first token, one row per pair."""
    found = [(pair, pair.speed["ttft_ms"]) for pair in findings.pruned_pairs if pair.speed]
    return _forest(found, findings, theme, null=1.0, text="pruning x INT8, time to first token, ratio")


def _looks(findings: Findings) -> Mapping[str, Style]:
    return styles(row.cell.method for row in findings.rows if row.cell.method)


def _first(findings: Findings, method: str | None) -> Row:
    return next(row for row in findings.measured if row.cell.method == method)


def _lines(axes: Axes, findings: Findings, get: Get, theme: Theme, *, factor: float = 1.0) -> None:
    """Draw one line per method and precision from the unpruned model on, whiskers for the intervals."""
    looks = _looks(findings)
    for place, (method, style) in enumerate(looks.items()):
        # Beside each other, so that whiskers at one ratio can be told apart.
        shift = 1.2 * (place - (len(looks) - 1) / 2) * min(1.0, 6 / len(looks))
        for int8 in (False, True):
            rows = [row for row in findings.measured if row.cell.int8 == int8 and row.cell.method in (None, method)]
            drawn = [
                (100 * row.cell.ratio + (shift if row.cell.method else 0), one) for row in rows if (one := get(row))
            ]
            if not drawn or rows[-1].cell.method is None:
                continue
            places, values = [x for x, _ in drawn], [factor * one.value for _, one in drawn]
            ends = [
                [factor * max(one.value - one.low, 0) for _, one in drawn],
                [factor * max(one.high - one.value, 0) for _, one in drawn],
            ]
            axes.errorbar(
                places,
                values,
                yerr=ends,
                color=style.colour,
                marker=style.marker,
                markersize=5,
                markerfacecolor=theme.paper if int8 else style.colour,
                linestyle="--" if int8 else "-",
                linewidth=1.2,
                elinewidth=0.8,
                capsize=2,
                label=None if int8 else method,
            )
    if any(row.cell.int8 for row in findings.measured):
        axes.plot(
            [], [], color=theme.ink, marker="o", markerfacecolor=theme.paper, linestyle="--", label="dashed: int8"
        )


def _forest(
    found: Sequence[tuple[Pair, Estimate]], findings: Findings, theme: Theme, *, null: float, text: str
) -> bytes:
    figure, (axes,) = paper(theme, 1.0 + 0.24 * max(len(found), 2))
    looks = _looks(findings)
    for place, (pair, one) in enumerate(found):
        colour = looks[pair.plain.cell.method or ""].colour
        axes.plot([one.low, one.high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
        inside = one.contains(null)
        axes.plot(one.value, place, marker="o", color=colour, markerfacecolor=theme.paper if inside else colour)
    axes.axvline(null, color=theme.ink, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(found)), [pair.label for pair, _ in found], color=theme.ink)
    axes.set_ylim(len(found) - 0.4, -0.6)
    label(axes, theme, x=f"{text}\n(filled: the interval leaves {null:g} out)")
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


CHARTS: dict[str, tuple[str, Callable[[Findings, Theme], bytes]]] = {
    "retention": ("Accuracy retained over the share of visual tokens removed", draw_retention),
    "speed": ("Speed-up over the share of visual tokens removed", draw_speed),
    "front": ("Accuracy over time to the first token, and its Pareto front", draw_front),
    "interaction_accuracy": ("Interaction of pruning and INT8: accuracy", draw_accuracy_interaction),
    "interaction_speed": ("Interaction of pruning and INT8: time to first token", draw_speed_interaction),
}


def charts_for(findings: Findings) -> list[str]:
    """Return the names of the charts that these findings have something to show in."""
    names = ["front"] if findings.front else []
    if any(row.cell.method for row in findings.measured):
        names = ["retention", *["speed"] * bool(findings.timing), *names]
    if findings.pruned_pairs:
        names += ["interaction_accuracy", *["interaction_speed"] * bool(findings.timing)]
    return names
