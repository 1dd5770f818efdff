"""Draw a figure of every variant over the share of tokens removed: few series in one panel, many in one each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lmmprune.compiler.measure.statistics import Estimate
from lmmprune.compiler.study.chart_style import FEW, Theme, label, note_points, paper, reserve, styles
from lmmprune.compiler.study.findings import Findings, Row
from lmmprune.compiler.study.grid import FLOAT, PRECISIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Get = Callable[[Row], Estimate | None]
_COLUMNS = 3
_MARKERS = dict(zip(PRECISIONS, "osv^", strict=True))
_WORDS = {"o": "circles", "s": "squares", "v": "triangles", "^": "upright triangles"}


def draw_lines(findings: Findings, theme: Theme, get: Get, text: str, *, factor: float = 1.0) -> Figure:
    """Return a figure: one line per series from the unpruned model on, with the 95 % interval as a band.

    Args:
        findings: All of it.
        theme: Colours.
        get: What is drawn of a cell.
        text: What that is.
        factor: It is multiplied by.
    """
    names = list(dict.fromkeys(row.cell.series for row in findings.measured if row.cell.method))
    lines = {
        (name, precision): points
        for name in names
        for precision in PRECISIONS
        if len(points := _points(findings, name, precision, get, factor)) > 1
    }
    draw = _together if len(names) <= FEW else _apart
    return draw(lines, theme, text)


# (series, precision) -> (share removed, value, low, high) of every ratio.
Lines = dict[tuple[str, str], list[tuple[float, ...]]]


def _points(findings: Findings, name: str, precision: str, get: Get, factor: float) -> list[tuple[float, ...]]:
    """Return share removed, value and the ends of its interval, for the unpruned model and every ratio."""
    rows = [
        row
        for row in findings.measured
        if row.cell.precision == precision and row.cell.series in ("", name) and not row.cell.schedule
    ]
    if not any(row.cell.method for row in rows):
        return []
    found = [(row, one) for row in rows if (one := get(row)) is not None]
    return [
        (100 * row.cell.ratio, factor * one.value, factor * min(one.low, one.value), factor * max(one.high, one.value))
        for row, one in found
    ]


def _together(lines: Lines, theme: Theme, text: str) -> Figure:
    """One panel per precision, every series in its own colour, its name at its end."""
    precisions = list(dict.fromkeys(precision for _, precision in lines))
    figure, panels = paper(theme, 0.6 + 3.2 * max(len(precisions), 1), max(len(precisions), 1), share=True)
    looks = styles(name for name, _ in lines)
    for axes, shown in zip(panels, precisions, strict=False):
        own = {name: points for (name, precision), points in lines.items() if precision == shown}
        for name, points in own.items():
            _line(axes, points, looks[name].colour, marker=looks[name].marker, hollow=shown != FLOAT)
        axes.set_title("floating point" if shown == FLOAT else shown, color=theme.ink, fontsize=10, loc="left")
    label(panels[-1], theme, x="visual tokens removed, %")
    figure.supylabel(text, color=theme.ink, fontsize=10)
    # Labels need the final limits, and room on the right.
    reserve(figure, looks)
    figure.draw_without_rendering()
    for axes, shown in zip(panels, precisions, strict=False):
        own = {name: points for (name, precision), points in lines.items() if precision == shown}
        ends = [(points[-1][0], points[-1][1]) for points in own.values()]
        note_points(axes, ends, list(own), [looks[name].colour for name in own])
    return figure


def _apart(lines: Lines, theme: Theme, text: str) -> Figure:
    """One panel per series, with all others pale behind it; dashed and hollow: integers."""
    names = list(dict.fromkeys(name for name, _ in lines))
    looks = styles(names)
    rows = -(-len(names) // _COLUMNS)
    figure, panels = paper(theme, 0.7 + 1.35 * rows, rows, _COLUMNS, share=True)
    for axes, name in zip(panels, names, strict=False):
        for (other, precision), points in lines.items():
            if other != name and precision == FLOAT:
                axes.plot([x for x, *_ in points], [y for _, y, *_ in points], color=theme.pale, linewidth=0.5)
        for precision, marker in _MARKERS.items():
            if (name, precision) in lines:
                hollow = precision != FLOAT
                _line(axes, lines[name, precision], looks[name].colour, marker=marker, hollow=hollow, size=3)
        axes.set_title(name, color=theme.ink, fontsize=8, loc="left", pad=2)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    dashed = [p for p in PRECISIONS if p != FLOAT and any(precision == p for _, precision in lines)]
    told = [f"{precision} ({_WORDS[_MARKERS[precision]]})" for precision in dashed]
    figure.supxlabel(
        "visual tokens removed, %; pale: the others" + (f"; dashed: {', '.join(told)}" if told else ""),
        color=theme.ink,
        fontsize=9,
    )
    figure.supylabel(text, color=theme.ink, fontsize=9)
    return figure


def _line(
    axes: Axes, points: Sequence[tuple[float, ...]], colour: str, *, marker: str, hollow: bool, size: float = 5
) -> None:
    places = [point[0] for point in points]
    axes.fill_between(
        places, [point[2] for point in points], [point[3] for point in points], color=colour, alpha=0.12, linewidth=0
    )
    axes.plot(
        places,
        [point[1] for point in points],
        color=colour,
        marker=marker,
        markersize=size,
        markerfacecolor=axes.get_facecolor() if hollow else colour,
        linestyle="--" if hollow else "-",
        linewidth=1.3,
    )
