"""``lmmprune bench``: time bundles side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmmprune.compiler.cli.output import human_bytes, json_option, note, print_json, progress, show, table

if TYPE_CHECKING:
    from lmmprune.compiler.bench_report import Report, Row


@click.command("bench")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--image", required=True, type=click.Path(path_type=Path), help="The picture.")
@click.option("--prompt", required=True, help="The question.")
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(min=2), help="Rounds that count.")
@click.option("--new-tokens", default=16, show_default=True, type=click.IntRange(min=2), help="Tokens per answer.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads within an operator.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Measure peak memory, a process each.")
@click.option("--chart", type=click.Path(path_type=Path, dir_okay=False), help="Write a chart to this PNG.")
@json_option
def command(
    bundles: tuple[Path, ...],
    image: Path,
    prompt: str,
    rounds: int,
    new_tokens: int,
    threads: int | None,
    memory: bool,
    chart: Path | None,
    as_json: bool,
) -> None:
    """Time bundles side by side, interleaved in one process; the first one is what the others are compared with."""
    from lmmprune.compiler.bench import bench, steps
    from lmmprune.compiler.bench_chart import check_chart, draw_chart

    if chart:
        check_chart(chart)
    with progress() as bar:
        task = bar.add_task("loading", total=steps(len(bundles), rounds, memory=memory))
        report = bench(
            bundles,
            image,
            prompt,
            rounds=rounds,
            new_tokens=new_tokens,
            threads=threads,
            memory=memory,
            on_step=lambda what: bar.update(task, advance=1, description=what),
        )
    if chart:
        draw_chart(report, chart)
        note(f"chart written to {chart}")
    if as_json:
        print_json(report.as_dict())
        return
    columns = (
        "variant",
        "tokens",
        "precision",
        "vision ms",
        "TTFT ms",
        "ratio",
        "ms/token",
        "ratio",
        "peak",
        "weights",
    )
    show(table(columns, [_cells(row) for row in report.rows]))
    show(_legend(report))
    for product in report.products:
        show(product.line())


def _cells(row: Row) -> list[str]:
    def spread(metric: str) -> str:
        time = row.times[metric]
        return f"{time.median:.2f} ({time.q1:.2f}..{time.q3:.2f})"

    return [
        row.name,
        f"{row.tokens_before} -> {row.image_tokens:.4g}",
        f"int8 {row.int8}" if row.int8 else row.dtype,
        spread("vision_ms"),
        spread("ttft_ms"),
        f"{row.speedup['ttft_ms'].median:.2f}x",
        spread("ms_per_token"),
        f"{row.speedup['ms_per_token'].median:.2f}x",
        human_bytes(row.memory.peak) if row.memory else "-",
        human_bytes(row.weights_bytes),
    ]


def _legend(report: Report) -> str:
    return (
        f"median (quartiles) of {report.settings['rounds']} interleaved rounds on {report.machine['processor']}; "
        "TTFT: vision and prefill; ratio: times faster than the first; peak: memory of a process that answers once"
    )
