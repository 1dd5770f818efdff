"""How the charts of a study look: colours that hold on light and dark paper, one look per method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart with every kind of colour blindness; none of them drowns on white or on near-black.
_COLOURS = ("#1f83c6", "#d55e00", "#0a9e73", "#c46d9e", "#c98a00", "#7d6bd0", "#4aa3a3")
_GREY = "#8a8a8a"
_MARKERS = "osD^vP*"
# Methods without a score are what the others must beat: grey, so that they stand back.
_BASELINES = ("random", "uniform")
# Inches: narrow enough for the letters to be read on a phone.
WIDTH = 5.2


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of letters, paper and lines behind the data."""

    name: str
    ink: str
    paper: str
    line: str


LIGHT = Theme(name="light", ink="#1c1c1c", paper="#ffffff", line="#dddddd")
DARK = Theme(name="dark", ink="#e6e6e6", paper="#1b1d21", line="#3a3d43")


@dataclass(frozen=True, kw_only=True)
class Style:
    """The look of one method."""

    colour: str
    marker: str


def styles(methods: Iterable[str]) -> Mapping[str, Style]:
    """Return every method's look; beyond seven methods colours come again with another marker."""
    found: dict[str, Style] = {}
    number = 0
    for method in dict.fromkeys(methods):
        if method in _BASELINES:
            found[method] = Style(colour=_GREY, marker="X" if method == _BASELINES[0] else "d")
        else:
            turn, index = divmod(number, len(_COLOURS))
            found[method] = Style(colour=_COLOURS[index], marker=_MARKERS[(index + turn) % len(_MARKERS)])
            number += 1
    return found


def paper(theme: Theme, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure of the report's width with panels one below the other.

    Args:
        theme: Its colours.
        height: Of the figure, in inches.
        panels: How many.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained", dpi=160, facecolor=theme.paper)
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(panels, 1, squeeze=False)[:, 0])
    for one in axes:
        one.set_facecolor(theme.paper)
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(theme.ink)
        one.tick_params(colors=theme.ink, labelsize=9)
        one.grid(color=theme.line, linewidth=0.6)
        one.set_axisbelow(True)
    return figure, axes


def label(axes: Axes, theme: Theme, *, x: str, y: str = "") -> None:
    """Name the axes."""
    axes.set_xlabel(x, color=theme.ink, fontsize=10)
    axes.set_ylabel(y, color=theme.ink, fontsize=10)


def legend(figure: Figure, axes: Axes, theme: Theme) -> None:
    """Put the legend below the figure, where it hides no data."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=9, frameon=False, labelcolor=theme.ink)
