"""How the charts of a study look: colours that hold on light and dark paper, a look per series, labels beside data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart with every kind of colour blindness; none of them drowns on white or on near-black.
_COLOURS = ("#1f83c6", "#d55e00", "#0a9e73", "#c46d9e", "#c98a00", "#7d6bd0", "#4aa3a3")
_MARKERS = "osD^vP*"
FEW = len(_COLOURS)
"""Series that are told apart in one panel; more of them get a panel each."""
# Inches: narrow enough for the letters to be read on a phone.
WIDTH = 5.2


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of letters, paper, lines behind the data, and data that stands back."""

    name: str
    ink: str
    paper: str
    line: str
    pale: str


LIGHT = Theme(name="light", ink="#1c1c1c", paper="#ffffff", line="#dddddd", pale="#c3c7cd")
DARK = Theme(name="dark", ink="#e6e6e6", paper="#1b1d21", line="#3a3d43", pale="#565b64")


@dataclass(frozen=True, kw_only=True)
class Style:
    """The look of one series."""

    colour: str
    marker: str


def styles(series: Iterable[str]) -> Mapping[str, Style]:
    """Return a look for each of at most ``FEW`` series; where there are more, all have the first one."""
    names = list(dict.fromkeys(series))
    return {
        name: Style(colour=_COLOURS[place % FEW], marker=_MARKERS[place % FEW])
        if len(names) <= FEW
        else Style(colour=_COLOURS[0], marker=_MARKERS[0])
        for place, name in enumerate(names)
    }


def paper(
    theme: Theme, height: float, rows: int = 1, columns: int = 1, *, share: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure of the report's width with panels, row by row.

    Args:
        theme: Its colours.
        height: Of the figure, in inches.
        rows: Of panels.
        columns: Of panels.
        share: Whether all panels have the same axes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained", dpi=160, facecolor=theme.paper)
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).flat)
    for one in axes:
        one.set_facecolor(theme.paper)
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(theme.ink)
        one.tick_params(colors=theme.ink, labelsize=9 if columns == 1 else 7)
        one.grid(color=theme.line, linewidth=0.6)
        one.set_axisbelow(True)
    return figure, axes


def label(axes: Axes, theme: Theme, *, x: str, y: str = "") -> None:
    """Name the axes."""
    axes.set_xlabel(x, color=theme.ink, fontsize=10)
    axes.set_ylabel(y, color=theme.ink, fontsize=10)


def reserve(figure: Figure, texts: Iterable[str], *, size: float = 8) -> None:
    """Keep room free on the right for the texts of ``note_points``: half of the width at most."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)  # as ``paper`` made it
    inches = 0.2 + max(map(len, texts), default=0) * size * 0.6 / 72
    engine.set(rect=(0, 0, 1 - min(inches / WIDTH, 0.5), 1))


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Return values as near to the given ones as their order and a gap between neighbours allow."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    # Neighbours that are too near become a block around their middle, again and again.
    blocks: list[list[int]] = []
    middles: list[float] = []
    for index in order:
        blocks.append([index])
        middles.append(values[index])
        while len(blocks) > 1:
            below, above = blocks[-2], blocks[-1]
            if middles[-1] - middles[-2] >= gap * (len(below) + len(above)) / 2:
                break
            weight = len(below) + len(above)
            middle = (middles[-2] * len(below) + middles[-1] * len(above)) / weight
            blocks[-2:], middles[-2:] = [below + above], [middle]
    found = [0.0] * len(values)
    for block, middle in zip(blocks, middles, strict=True):
        for place, index in enumerate(block):
            found[index] = middle + gap * (place - (len(block) - 1) / 2)
    return found


def note_points(
    axes: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str], colours: Sequence[str], *, size: float = 8
) -> None:
    """Write a text for each point into the right margin, none over another, with a line to its point."""
    low, high = axes.get_ylim()
    inches = axes.get_window_extent().height / axes.figure.dpi
    places = spread([y for _, y in points], (high - low) * size * 1.25 / 72 / inches)
    for (x, y), place, text, colour in zip(points, places, texts, colours, strict=True):
        noted = axes.annotate(
            text,
            (x, y),
            xytext=(1.02, place),
            textcoords=axes.get_yaxis_transform(),
            color=colour,
            fontsize=size,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6, "shrinkB": 3},
        )
        # The margin is reserved by whoever calls: the layout shall not shrink the panel once more.
        noted.set_in_layout(False)
