"""Write a study's report: one HTML page that needs nothing else, the charts as PNG, and the figures as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from lmmprune.compiler.measure.page import page_environment, page_style, png_uri, table_script
from lmmprune.compiler.measure.statistics import RESAMPLES
from lmmprune.compiler.study.chart_style import DARK, LIGHT
from lmmprune.compiler.study.charts import CHARTS, charts_for
from lmmprune.compiler.study.examples import Example
from lmmprune.compiler.study.findings import Findings, Row
from lmmprune.compiler.study.grid import percent
from lmmprune.compiler.study.summary import bullets
from lmmprune.compiler.study.words import number, points, shares, times, verdict
from lmmprune.compiler.study.write_csv import csv_text
from lmmprune.compiler.study.write_file import write_bytes, write_text
from lmmprune.errors import require
from lmmprune.units import human_bytes

_TEMPLATE = "report.html.jinja"


def write_report(
    findings: Findings,
    folder: Path,
    *,
    shown: Row | None = None,
    examples: Sequence[Example] = (),
    command: str = "",
) -> tuple[Path, ...]:
    """Write ``report.html``, ``results.csv`` and a PNG per chart; return them in this order.

    Args:
        findings: What it says.
        folder: Where.
        shown: The cell that the examples are of.
        examples: Answers that pruning changed.
        command: Measures the same again.

    Raises:
        MissingExtraError: Jinja2 or matplotlib isn't installed.
    """
    require("matplotlib", "export")
    charts: list[dict[str, str]] = []
    pictures: list[Path] = []
    for name in charts_for(findings):
        title, draw = CHARTS[name]
        light = draw(findings, LIGHT)
        pictures.append(folder / f"{name}.png")
        write_bytes(pictures[-1], light)
        charts.append({"title": title, "light": png_uri(light), "dark": png_uri(draw(findings, DARK))})
    # A chart of an earlier, larger request would contradict the page.
    for name in CHARTS:
        if folder / f"{name}.png" not in pictures:
            (folder / f"{name}.png").unlink(missing_ok=True)
    write_text(folder / "results.csv", csv_text(findings))
    write_text(folder / "report.html", html(findings, charts, shown=shown, examples=examples, command=command))
    return (folder / "report.html", folder / "results.csv", *pictures)


def html(
    findings: Findings,
    charts: list[dict[str, str]],
    *,
    shown: Row | None = None,
    examples: Sequence[Example] = (),
    command: str = "",
) -> str:
    """Return the page.

    Args:
        findings: What it says.
        charts: Title, and ``data:`` URIs of the picture on light and on dark paper.
        shown: The cell that the examples are of.
        examples: Answers that pruning changed.
        command: Measures the same again.
    """
    environment = page_environment()
    environment.filters |= {
        "bytes": human_bytes,
        "percent": percent,
        "points": points,
        "shares": shares,
        "number": number,
        "times": times,
        "uri": png_uri,
        "verdict": verdict,
    }
    text = (resources.files(__package__) / _TEMPLATE).read_text(encoding="utf-8")
    page: str = environment.from_string(text).render(
        findings=findings,
        charts=charts,
        style=page_style(),
        script=table_script(),
        bullets=bullets(findings),
        shown=shown,
        examples=examples,
        command=command,
        resamples=RESAMPLES,
    )
    return page
