"""What the commands that answer share: the options of an answer, and its line of statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from lmmprune.compiler.cli.command import option

if TYPE_CHECKING:
    from lmmprune.compiler.runtime.answer import Stats

ANSWER = "Answer"
_SAMPLING = "Sampling"

_OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    option(
        "--max-new-tokens",
        default=128,
        show_default=True,
        type=click.IntRange(min=1),
        help="Stop after so many.",
        group=ANSWER,
    ),
    option(
        "--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be repeated.", group=ANSWER
    ),
    option(
        "--temperature",
        type=float,
        help="Draw tokens from their scores divided by this.  [default: 0, the likeliest token]",
        group=_SAMPLING,
    ),
    option(
        "--top-p",
        type=float,
        default=1.0,
        show_default=True,
        help="Draw only from the likeliest tokens that together have this share.",
        group=_SAMPLING,
    ),
    option(
        "--top-k",
        type=int,
        default=0,
        help="Draw only from so many of the likeliest.  [default: from all]",
        group=_SAMPLING,
    ),
    option(
        "--seed", type=int, help="The same seed gives the same answer.  [default: another each time]", group=_SAMPLING
    ),
    option(
        "--prefill-chunk",
        type=click.IntRange(min=1),
        help="The decoder takes so many tokens of a prompt at once.  [default: all]",
        group=ANSWER,
    ),
)


def answer_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of an answer to a command: those of ``Model.answer``, and ``prefill_chunk`` of ``load``."""
    for add in reversed(_OPTIONS):
        function = add(function)
    return function


def stats_line(stats: Stats, *, video: bool = False) -> str:
    """Return times and counts of an answer in one line."""
    each = "" if stats.ms_per_token is None else f" ({stats.ms_per_token:.2f} ms each)"
    tokens = f"{stats.tokens_before} -> {stats.image_tokens}{_bucket(stats)}"
    return (
        f"preprocess {stats.preprocess_ms:.1f} ms, vision {stats.vision_ms:.1f} ms, prefill {stats.prefill_ms:.1f} ms, "
        f"decode {stats.decode_ms:.1f} ms{each}; image tokens {tokens}{_of(stats, video)}, "
        f"prompt {stats.prompt_tokens}{_reused(stats)}, new {stats.new_tokens} (finished: {stats.finish_reason})"
    )


def _reused(stats: Stats) -> str:
    return f" ({stats.reused_tokens} read before)" if stats.reused_tokens else ""


def _of(stats: Stats, video: bool) -> str:
    sizes = f" at {', '.join(stats.sizes)}" if stats.sizes else ""
    tiles = f" in {', '.join(stats.tiles)} tiles" if stats.tiles else ""
    return (f" of {stats.images} {'views' if video else 'pictures'}" if stats.images > 1 else "") + sizes + tiles


def _bucket(stats: Stats) -> str:
    """Say which of several counts was taken, and why."""
    if stats.dynamic_count is None:
        return ""
    enough = "the smallest bucket for" if stats.image_tokens >= stats.dynamic_count else "the largest bucket, short of"
    return f" ({enough} this picture's own {stats.dynamic_count})"
