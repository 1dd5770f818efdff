"""``lmmprune compare``: how faithful bundles are to another one, without right answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmmprune.compiler.cli.command import GENERAL, Command, argument, option
from lmmprune.compiler.cli.given import refuse_ignored
from lmmprune.compiler.cli.options import force_option, threads_option, unsealed_option
from lmmprune.compiler.cli.output import json_option, note, print_json, show, warn
from lmmprune.compiler.cli.progress import phases
from lmmprune.compiler.cli.table import Column, table
from lmmprune.units import human_bytes

if TYPE_CHECKING:
    from lmmprune.compiler.compare.comparison import Comparison, Other
    from lmmprune.compiler.measure.statistics import Estimate

_LIMITS = "Limits (exit code 1 where one isn't kept)"


@click.command(
    "compare",
    cls=Command,
    example='lmmprune compare full/ pruned/ --data photos/ --prompt "What is this?"',
)
@argument("base", type=click.Path(path_type=Path))
@argument("others", nargs=-1, required=True, type=click.Path(path_type=Path))
@option("--data", required=True, help="Folder of pictures, JSON Lines file with image and prompt, or 'tiny-llava'.")
@option("--prompt", "prompts", multiple=True, help="Ask this about every picture of a folder; may be repeated.")
@option("--limit", type=click.IntRange(min=1), help="Use only the first so many examples.")
@option("--max-new-tokens", default=32, show_default=True, type=click.IntRange(min=1), help="Cut answers there.")
@option("--timing/--no-timing", default=True, show_default=True, help="Take times, with all bundles loaded.")
@option("--rounds", default=10, show_default=True, type=click.IntRange(min=2), help="Timed rounds that count.")
@threads_option()
@option(
    "--keep-answers/--forget-answers", default=True, show_default=True, help="Keep BASE's answers for the next time."
)
@option("--min-agreement", type=float, help="Least share of answers equal to BASE's, 0 to 1.", group=_LIMITS)
@option("--max-kl", type=float, help="Largest divergence per token, in nats.", group=_LIMITS)
@option("--max-ttft-ratio", type=float, help="Largest time to the first token over BASE's.", group=_LIMITS)
@option("--html", "page", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with the worst examples.")
@force_option("a page that is there", group=GENERAL)
@unsealed_option
@json_option
def command(
    base: Path,
    others: tuple[Path, ...],
    data: str,
    prompts: tuple[str, ...],
    limit: int | None,
    max_new_tokens: int,
    timing: bool,
    rounds: int,
    threads: int | None,
    keep_answers: bool,
    min_agreement: float | None,
    max_kl: float | None,
    max_ttft_ratio: float | None,
    page: Path | None,
    force: bool,
    as_json: bool,
) -> int:
    """Compare bundles with BASE, the unpruned one as a rule, on pictures and prompts; no answers need be known.

    BASE answers greedily, and every other bundle is led through its answers: how often do both say the same, how far
    are their probabilities apart, how much faster is it. Intervals are 95 %, pictures drawn again.
    """
    from lmmprune.api.measure import compare
    from lmmprune.compiler.compare.limits import Limits
    from lmmprune.compiler.compare.page import check_page, write_page

    refuse_ignored(page is not None, "is for a page: add --html FILE", "force")
    refuse_ignored(timing, "says how to take times: leave out --no-timing", "rounds")
    limits = Limits(min_agreement=min_agreement, max_kl=max_kl, max_ttft_ratio=max_ttft_ratio)
    limits.check(timed=timing)
    if page:
        check_page(page, force=force)
    with phases() as progress:
        found = compare(
            base,
            others,
            data,
            prompts=prompts,
            limit=limit,
            max_new_tokens=max_new_tokens,
            rounds=rounds if timing else 0,
            threads=threads,
            keep_answers=keep_answers,
            drawings=page is not None,
            progress=progress,
        )
    broken = limits.broken(found)
    if page:
        write_page(found, page)
        note(f"page written to {page}")
    if as_json:
        print_json({**found.as_dict(), "broken_limits": broken})
    else:
        _show(found)
    for line in broken:
        warn(f"limit not kept: {line}")
    return 1 if broken else 0


def _show(found: Comparison) -> None:
    columns: list[str | Column] = [
        "bundle",
        Column(title="tokens", drop=2),
        Column(title="precision", drop=4),
        "answers equal",
        Column(title="first token", drop=3),
        Column(title="before it differs", drop=5),
        "KL, nats",
        Column(title="perplexity", drop=6),
        Column(title="TTFT", drop=1),
        Column(title="per token", drop=7),
        Column(title="size", drop=8),
    ]
    if found.base.accuracy is not None:
        columns.insert(3, Column(title="right", drop=1))
    show(table(columns, [_base(found), *(_cells(other) for other in found.others)]))
    for other in found.others:
        if len(other.kinds) > 1:
            rows = [
                [kind, str(one.examples), _percent(one.exact), _percent(one.first), _number(one.kl)]
                for kind, one in other.kinds.items()
            ]
            show(table(("kind", "examples", "answers equal", "first token", "KL, nats"), rows, title=other.bundle.name))
    show(_legend(found))


def _base(found: Comparison) -> list[str]:
    base = found.base
    first = f"{base.times['ttft_ms']:.2f} ms" if base.times else "-"
    each = f"{base.times['ms_per_token']:.2f} ms" if base.times else "-"
    cells = [base.name, f"{base.average_tokens:.4g}", base.precision, "-", "-", "-", "-", "-", first, each]
    if base.accuracy is not None:
        cells.insert(3, _percent(base.accuracy))
    return [*cells, human_bytes(base.bytes)]


def _cells(other: Other) -> list[str]:
    bundle, one = other.bundle, other.measures
    cells = [
        bundle.name,
        f"{bundle.tokens_before} -> {bundle.average_tokens:.4g}",
        bundle.precision,
        _percent(one.exact),
        _percent(one.first),
        _percent(one.prefix),
        _number(one.kl),
        f"x {one.perplexity_ratio.value:.3f}",
        _ratio(bundle.ratios.get("ttft_ms")),
        _ratio(bundle.ratios.get("ms_per_token")),
        human_bytes(bundle.bytes),
    ]
    if bundle.accuracy is not None and bundle.accuracy_difference is not None:
        cells.insert(3, f"{bundle.accuracy.value:.1%} ({_points(bundle.accuracy_difference)})")
    return cells


def _percent(one: Estimate) -> str:
    return f"{one.value:.1%} ({100 * one.low:.1f}..{100 * one.high:.1f})"


def _number(one: Estimate) -> str:
    return f"{one.value:.3g} ({one.low:.3g}..{one.high:.3g})"


def _ratio(one: Estimate | None) -> str:
    return "-" if one is None else f"x {one.value:.2f} ({one.low:.2f}..{one.high:.2f})"


def _points(one: Estimate) -> str:
    return f"{100 * one.value:+.1f}, {100 * one.low:+.1f}..{100 * one.high:+.1f}"


def _legend(found: Comparison) -> str:
    about = found.settings
    timed = f"; times: medians of {about['rounds']} interleaved rounds, x is that of BASE" if about["rounds"] else ""
    right = "; right: whole answers, and points beside BASE" if found.base.accuracy is not None else ""
    return (
        f"{about['examples']} examples of {about['pictures']} pictures, 95 % intervals; KL and perplexity: over the"
        f" tokens of BASE's greedy answers{right}{timed}"
    )
