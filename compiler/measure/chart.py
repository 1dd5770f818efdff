"""Draw a benchmark as a picture: time to the first token, time per token, and sizes, one bar per variant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmmprune.compiler.bundle.atomic import replace_file
from lmmprune.compiler.bundle.replace import check_file
from lmmprune.compiler.measure.report import BenchReport, Row, Spread
from lmmprune.errors import InputError, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours: told apart with every kind of colour blindness, and in grey.
_BLUE, _ORANGE, _GREEN, _SKY = "#0072B2", "#E69F00", "#009E73", "#56B4E9"


def check_chart(path: Path, *, force: bool = False) -> None:
    """Refuse a chart that couldn't be written, before anything is measured for it.

    Raises:
        InputError: Its folder doesn't exist, its suffix isn't known, or it is there and ``force`` isn't given.
        MissingExtraError: matplotlib isn't installed.
    """
    require("matplotlib", "export")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if not path.parent.is_dir():
        raise InputError(f"can't write the chart '{path}': there is no directory '{path.parent}'")
    if path.suffix[1:] not in FigureCanvasAgg.get_supported_filetypes():
        raise InputError(f"can't write the chart '{path}': give it the suffix .png, .svg or .pdf")
    check_file(path, force=force, option="--chart")


def draw_chart(report: BenchReport, path: Path) -> None:
    """Write the chart as a PNG (or what the suffix says).

    Bars are medians, whiskers the quartiles, ``x`` says how many times faster than the first variant, with the 95 %
    interval of that.

    Raises:
        InputError: The file can't be written, or matplotlib doesn't know its suffix.
        MissingExtraError: matplotlib isn't installed.
    """
    require("matplotlib", "export")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = report.rows
    figure = Figure(figsize=(13, 1.7 + 0.55 * len(rows)), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    first, each, size = figure.subplots(1, 3, sharey=True)
    visions = [row.times["vision_ms"].median for row in rows]
    # Medians of parts don't add up to the median of the whole: what isn't vision is the rest of it.
    rests = [max(row.times["ttft_ms"].median - vision, 0.0) for row, vision in zip(rows, visions, strict=True)]
    _bars(first, rows, [("vision", _BLUE, visions), ("prefill", _ORANGE, rests)], whisker="ttft_ms")
    first.set_title("time to first token [ms]")
    steps = [row.times["ms_per_token"].median for row in rows]
    _bars(each, rows, [("decode", _GREEN, steps)], whisker="ms_per_token")
    each.set_title("per further token [ms]")
    _sizes(size, rows)
    first.set_yticks(range(len(rows)), [_label(row) for row in rows])
    first.invert_yaxis()
    lines = "\n".join(product.line() for product in report.products)
    figure.supxlabel(
        f"{lines}\n{report.where}; median and quartiles of {report.settings['rounds']} rounds".strip(), fontsize=8
    )
    try:
        with replace_file(path) as stream:
            figure.savefig(stream, format=path.suffix[1:] or None)
    except (OSError, ValueError) as error:
        raise InputError(f"can't write the chart '{path}' ({error})") from error


def _bars(axes: Axes, rows: Sequence[Row], parts: Sequence[tuple[str, str, Sequence[float]]], *, whisker: str) -> None:
    places = range(len(rows))
    left = [0.0] * len(rows)
    for label, colour, widths in parts:
        axes.barh(places, widths, left=left, color=colour, label=label, height=0.6)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    spreads = [row.times[whisker] for row in rows]
    middles = [spread.median for spread in spreads]
    errors = [[s.median - s.q1 for s in spreads], [s.q3 - s.median for s in spreads]]
    axes.errorbar(middles, places, xerr=errors, fmt="none", ecolor="black", capsize=3, linewidth=1)
    for place, row in enumerate(rows):
        end: Spread = row.times[whisker]
        text = f" {end.median:.3g}  ({_factor(row, whisker)})"
        axes.text(max(end.q3, left[place]), place, text, va="center", fontsize=9)
    _tidy(axes, max(max(spread.q3 for spread in spreads), *left) * 1.45)
    if len(parts) > 1:
        _legend(axes)


def _factor(row: Row, metric: str) -> str:
    """Return how many times faster, with the 95 % interval."""
    one = row.intervals[metric]
    return f"{one.value:.2f}x, {one.low:.2f}-{one.high:.2f}"


def _sizes(axes: Axes, rows: Sequence[Row]) -> None:
    mebi = 2.0**20
    weights = [row.weights_bytes / mebi for row in rows]
    peaks = [row.memory.peak / mebi if row.memory else 0.0 for row in rows]
    for place, (weight, peak) in enumerate(zip(weights, peaks, strict=True)):
        axes.barh(place - 0.17, weight, height=0.32, color=_SKY, label="weights on disk" if not place else None)
        axes.text(weight, place - 0.17, f" {weight:.3g}", va="center", fontsize=8)
        if peak:
            axes.barh(place + 0.17, peak, height=0.32, color="#666666", label="peak memory" if not place else None)
            axes.text(peak, place + 0.17, f" {peak:.3g}", va="center", fontsize=8)
    _tidy(axes, max(*weights, *peaks) * 1.45)
    axes.set_title("size [MiB]")
    _legend(axes)


def _tidy(axes: Axes, limit: float) -> None:
    axes.set_xlim(0, limit)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _legend(axes: Axes) -> None:
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False)


def _label(row: Row) -> str:
    tokens = (
        str(row.tokens_before)
        if row.image_tokens == row.tokens_before
        else f"{row.tokens_before} → {row.image_tokens:.4g}"
    )
    return f"{row.name}\n{tokens} image tokens, {_numbers(row)}"


def _numbers(row: Row) -> str:
    return "int4" if row.int4 else "int8" if row.int8 else row.dtype
