"""Write what a run found: the front as CSV, JSON and PNG, one HTML page, and the three bundles that are named."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from lmmprune.compiler.measure.page import page_environment, page_style, png_uri
from lmmprune.compiler.measure.statistics import RESAMPLES, Estimate
from lmmprune.compiler.study.chart_style import DARK, LIGHT, Theme, label, paper, styles
from lmmprune.compiler.study.write_file import write_bytes, write_text
from lmmprune.compiler.tune.budget import Budget
from lmmprune.compiler.tune.choose import POINTS, Choice, Finalist, front_of
from lmmprune.units import human_bytes

_TEMPLATE = "report.html.jinja"


def write_report(
    folder: Path,
    budget: Budget,
    measure: str,
    finalists: Sequence[Finalist],
    choice: Choice,
    about: Mapping[str, str],
) -> tuple[Path, ...]:
    """Write ``report.html``, ``front.csv``, ``front.json`` and ``front.png``; return them in this order."""
    best = front_of(finalists)
    rows = [figures(one, budget, on_front=one in best) for one in finalists]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    named = {name: one.candidate.name if one else None for name, one in named_lines(choice)}
    document = {"about": dict(about), "choice": named, "finalists": rows}
    light, dark = (draw_front(finalists, measure, theme) for theme in (LIGHT, DARK))
    files = [folder / name for name in ("report.html", "front.csv", "front.json", "front.png")]
    write_text(files[1], stream.getvalue())
    write_text(files[2], json.dumps(document, indent=1, allow_nan=False) + "\n")
    write_bytes(files[3], light)
    environment = page_environment()
    environment.filters |= {"bytes": human_bytes, "interval": interval, "uri": png_uri}
    template = (resources.files(__package__) / _TEMPLATE).read_text(encoding="utf-8")
    page: str = environment.from_string(template).render(
        budget=str(budget),
        lines=[(name, one, line(one)) for name, one in named_lines(choice) if one is not None],
        nearest=choice.nearest,
        finalists=finalists,
        best=best,
        unit=unit(measure),
        about=about,
        light=light,
        dark=dark,
        style=page_style(),
        resamples=RESAMPLES,
    )
    write_text(files[0], page)
    return tuple(files)


def figures(one: Finalist, budget: Budget, *, on_front: bool) -> dict[str, Any]:
    """Return a finalist's numbers by name."""
    found: dict[str, Any] = {
        "name": one.candidate.name,
        "method": one.candidate.method or "",
        "ratio": "" if one.candidate.schedule else one.candidate.ratio,
        "options": " ".join(f"{name}={value}" for name, value in one.candidate.options),
        "schedule": json.dumps(dict(one.schedule)),
        "positions": one.candidate.positions,
        "int8": one.candidate.int8 or "",
        "average_tokens": one.tokens,
        "bytes": one.bytes,
        "flops_ratio": one.flops,
        "ttft_ms": one.ttft_ms,
        "tuned_loss": one.tuned_loss,
    }
    estimates: dict[str, Estimate] = {"ttft_ratio": one.ttft, "ms_per_token_ratio": one.ms_per_token, "kl": one.kl}
    if one.points is not None:
        estimates["points_lost"] = one.points
    for name, value in estimates.items():
        found |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    return {**found, "within_budget": int(one.keeps(budget)), "on_front": int(on_front), "command": one.command}


def named_lines(choice: Choice) -> list[tuple[str, Finalist | None]]:
    """Return the three that are named."""
    return [
        ("fastest within the budget", choice.fastest),
        ("most faithful within the budget", choice.faithful),
        ("knee of the front", choice.knee),
    ]


def line(one: Finalist) -> str:
    """Return a finalist's numbers in one line."""
    return (
        f"{one.label}: {one.tokens:.4g} tokens, {unit(one.measure)} {interval(one.loss)}, first token in"
        f" {one.ttft_ms:.3g} ms, {interval(one.ttft)} of unpruned, {human_bytes(one.bytes)}"
    )


def interval(one: Estimate) -> str:
    """Return a value with its interval."""
    return f"{one.value:.3g} ({one.low:.3g} to {one.high:.3g})"


def unit(measure: str) -> str:
    """Return what the loss is."""
    return "points lost" if measure == POINTS else "KL in nats"


def draw_front(finalists: Sequence[Finalist], measure: str, theme: Theme) -> bytes:
    """Return a PNG: the loss over the time to the first token, each point with its name, and the front."""
    figure, (axes,) = paper(theme, 4.6)
    looks = styles(one.candidate.method or "unpruned" for one in finalists)
    best = front_of(finalists)
    axes.step(
        [one.ttft.value for one in best],
        [one.loss.value for one in best],
        where="post",
        color=theme.ink,
        linewidth=1,
        zorder=1,
    )
    for one in finalists:
        look = looks[one.candidate.method or "unpruned"]
        x, y = one.ttft, one.loss
        axes.errorbar(
            x.value,
            y.value,
            xerr=[[max(x.value - x.low, 0)], [max(x.high - x.value, 0)]],
            yerr=[[max(y.value - y.low, 0)], [max(y.high - y.value, 0)]],
            color=look.colour,
            marker=look.marker,
            markerfacecolor=theme.paper if one.candidate.int8 else look.colour,
            elinewidth=0.7,
        )
        axes.annotate(
            one.label, (x.value, y.value), xytext=(5, 5), textcoords="offset points", fontsize=7, color=theme.ink
        )
    axes.margins(x=0.2)
    label(axes, theme, x="time to first token, of unpruned (hollow: int8)", y=unit(measure))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def document_of(choice: Choice, finalists: Sequence[Finalist], dropped: Mapping[str, str]) -> dict[str, Any]:
    """Return all of a result for ``--json``."""
    return {
        "choice": {name: dataclasses.asdict(one) if one else None for name, one in named_lines(choice)},
        "nearest": dataclasses.asdict(choice.nearest) if choice.nearest else None,
        "finalists": [dataclasses.asdict(one) for one in finalists],
        "dropped": dict(dropped),
    }
