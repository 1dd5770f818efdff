"""``lmmprune bench``: time bundles side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmmprune.compiler.cli.command import GENERAL, Command, argument, option
from lmmprune.compiler.cli.given import refuse_ignored
from lmmprune.compiler.cli.options import force_option, threads_option, unsealed_option
from lmmprune.compiler.cli.output import json_option, note, print_json, show
from lmmprune.compiler.cli.progress import progress
from lmmprune.compiler.cli.seen import check_kind, check_seen
from lmmprune.compiler.cli.table import Column, table
from lmmprune.errors import InputError
from lmmprune.units import human_bytes

if TYPE_CHECKING:
    from lmmprune.compiler.explain.rows import Explanation
    from lmmprune.compiler.measure.report import BenchReport, Row


@click.command(
    "bench", cls=Command, example='lmmprune bench out-full out-pruned --image photo.jpg --prompt "What is this?"'
)
@argument("bundles", nargs=-1, type=click.Path(path_type=Path))
@option(
    "--image", "images", multiple=True, type=click.Path(path_type=Path), help="The picture; may be repeated, as in run."
)
@option("--video", type=click.Path(path_type=Path), help="The video, for bundles with --frames.")
@option("--prompt", help="The question.")
@option("--import", "imported", type=click.Path(path_type=Path), help="Show what a plan's measure.sh measured.")
@option("--rounds", default=10, show_default=True, type=click.IntRange(min=2), help="Rounds that count.")
@option("--new-tokens", default=16, show_default=True, type=click.IntRange(min=2), help="Tokens per answer.")
@option("--follow-up", metavar="TEXT", help="Time a second question too: on what was read, and read anew.")
@threads_option()
@option(
    "--memory/--no-memory", default=True, show_default=True, help="Measure peak memory, each bundle in its own process."
)
@option("--explain", "explained", is_flag=True, help="Say which kernel computed each layer, and why a float one.")
@option("--chart", type=click.Path(path_type=Path, dir_okay=False), help="Write a chart to this PNG.")
@force_option("a chart that is there", group=GENERAL)
@unsealed_option
@json_option
def command(
    bundles: tuple[Path, ...],
    images: tuple[Path, ...],
    video: Path | None,
    prompt: str | None,
    imported: Path | None,
    rounds: int,
    new_tokens: int,
    follow_up: str | None,
    threads: int | None,
    memory: bool,
    chart: Path | None,
    explained: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Time bundles side by side, interleaved in one process; the first one is what the others are compared with.

    With --import, nothing is run here: the result.json that a plan's measure.sh wrote elsewhere is shown instead.
    """
    if imported is not None:
        if bundles or images or video or prompt or explained:
            raise click.UsageError("--import stands alone: leave out bundles, --image, --video, --prompt and --explain")
        refuse_ignored(
            False,
            "says how to measure, and --import shows what was: leave it out",
            "rounds",
            "new_tokens",
            "follow_up",
            "threads",
            "memory",
        )
        _import(imported, chart, force, as_json)
        return
    refuse_ignored(chart is not None, "is for a chart: add --chart FILE", "force")
    for name, given in (("BUNDLES", bundles), ("--image", images or video), ("--prompt", prompt)):
        if not given:
            raise click.UsageError(f"missing {name}: give bundles, --image and --prompt, or --import FILE")
    check_seen(images, video, None)
    if video is not None and explained:
        raise InputError("--explain looks at a prompt of one picture: give one --image instead of --video")
    assert prompt is not None
    from lmmprune.compiler.bundle.bundle import Bundle
    from lmmprune.compiler.explain import explain as kernels
    from lmmprune.compiler.measure.bench import bench, steps
    from lmmprune.compiler.measure.chart import check_chart, draw_chart

    if chart:
        check_chart(chart, force=force)
    if explained and len(images) > 1:
        raise InputError(f"--explain looks at a prompt of one picture, {len(images)} are given: give one --image")
    if explained:  # refused now, not after the measurement
        for path in bundles:
            kernels.check_explainable(Bundle.open(path))
    for path in bundles:
        check_kind(Bundle.open(path).manifest, video)
    explanation = None
    with progress() as bar:
        more = kernels.steps(len(bundles)) if explained else 0
        task = bar.add_task("loading", total=steps(len(bundles), rounds, memory=memory) + more)

        def on_step(what: str) -> None:
            bar.update(task, advance=1, description=what)

        report = bench(
            bundles,
            images if video is None else [video],
            prompt,
            rounds=rounds,
            new_tokens=new_tokens,
            threads=threads,
            memory=memory,
            follow_up=follow_up,
            on_step=on_step,
        )
        if explained:
            explanation = kernels.explain(bundles, images[0], prompt, rounds=rounds, threads=threads, on_step=on_step)
    if chart:
        draw_chart(report, chart)
        note(f"chart written to {chart}")
    if as_json:
        print_json({**report.as_dict(), **({"kernels": explanation.as_dict()} if explanation else {})})
        return
    _show_report(report)
    if explanation is not None:
        _show_kernels(explanation)


def _import(path: Path, chart: Path | None, force: bool, as_json: bool) -> None:
    """Show what was measured elsewhere."""
    from lmmprune.compiler.measure.chart import check_chart, draw_chart
    from lmmprune.compiler.measure.read_result import import_result

    if chart:
        check_chart(chart, force=force)
    found = import_result(path)
    for line in found.missing:
        note(line)
    if chart:
        draw_chart(found.report, chart)
        note(f"chart written to {chart}")
    if as_json:
        print_json({**found.report.as_dict(), "missing": list(found.missing)})
        return
    _show_report(found.report)


def _show_report(report: BenchReport) -> None:
    rows = [_cells(row) for row in report.rows]
    columns: list[str | Column] = [
        "variant",
        Column(title="tokens", drop=1),
        Column(title="precision", drop=4),
        Column(title="vision ms", drop=3),
        "TTFT ms",
        "ratio",
        Column(title="ms/token", drop=2),
        Column(title="ratio", drop=2),
        Column(title="peak", drop=5),
        Column(title="weights", drop=6),
    ]
    show(table(columns, rows))
    if any(row.batch > 1 for row in report.rows):
        throughput = ["variant", "at once", "answers/s", "tokens/s", "ratio"]
        show(table(throughput, [_throughput(row) for row in report.rows]))
    show(_legend(report))
    for taken, behind in (("sizes", ""), ("tiles", " tiles")):
        for name, found in report.settings.get(taken, {}).items():
            show(f"{name}: a prompt's pictures as {', '.join(found)}{behind}")
    for product in report.products:
        show(product.line())
    for row in report.rows:
        if row.follow_up is not None:
            show(row.follow_up.line(row.name))


def _show_kernels(explanation: Explanation) -> None:
    from lmmprune.compiler.explain.tables import LEGEND, TOTALS, comparisons, reasons, totals

    for title, columns, rows in comparisons(explanation):
        show(table(_kernel_columns(columns), rows, title=title))
    columns_of_totals: list[str | Column] = [*TOTALS[:-1], Column(title=TOTALS[-1], drop=1)]
    show(table(columns_of_totals, totals(explanation)), LEGEND, *reasons(explanation))


def _kernel_columns(titles: Sequence[str]) -> list[Column]:
    """Return the columns with what may go: how often, what the first one ran, its times, those of decoding, and why."""
    levels = {"products": 5, "first ran": 6, "first": 4, "decode ms": 3, "float because": 2, "kernel": 1}
    decodes = titles.index("decode ms")
    return [
        Column(title=title, drop=levels["decode ms"] if place > decodes and title == "ratio" else levels.get(title, 0))
        for place, title in enumerate(titles)
    ]


def _cells(row: Row) -> list[str]:
    def spread(metric: str) -> str:
        time = row.times[metric]
        return f"{time.median:.2f} ({time.q1:.2f}..{time.q3:.2f})"

    def ratio(metric: str) -> str:
        one = row.intervals[metric]
        return f"{one.value:.2f}x ({one.low:.2f}..{one.high:.2f})"

    return [
        row.name,
        f"{row.tokens_before} -> {row.image_tokens:.4g}",
        row.integers or row.dtype,
        spread("vision_ms"),
        spread("ttft_ms"),
        ratio("ttft_ms"),
        spread("ms_per_token"),
        ratio("ms_per_token"),
        human_bytes(row.memory.peak) if row.memory else "-",
        human_bytes(row.weights_bytes),
    ]


def _throughput(row: Row) -> list[str]:
    found = row.throughput
    assert found is not None, "only what was measured here has rows"
    return [
        row.name,
        str(row.batch),
        f"{found.answers.median:.3g} ({found.answers.q1:.3g}..{found.answers.q3:.3g})",
        f"{found.tokens.median:.3g} ({found.tokens.q1:.3g}..{found.tokens.q3:.3g})",
        f"{found.ratio.value:.2f}x ({found.ratio.low:.2f}..{found.ratio.high:.2f})",
    ]


def _legend(report: BenchReport) -> str:
    return (
        f"median (quartiles) of {report.settings['rounds']} interleaved rounds on {report.where}; "
        "TTFT: vision and prefill; ratio: times faster than the first, with its 95 % interval; peak: memory of a"
        " process that answers once"
    )
