"""``lmmprune run``: answer a question about a picture, or about several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmmprune.compiler.cli.command import Command, argument, option
from lmmprune.compiler.cli.options import threads_option, unsealed_option
from lmmprune.compiler.cli.output import json_option, note, print_json

if TYPE_CHECKING:
    from lmmprune.compiler.runtime.answer import Stats


_ANSWER, _SAMPLING = "Answer", "Sampling"


@click.command("run", cls=Command, example='lmmprune run out/ --image photo.jpg --prompt "What is this?"')
@argument("bundle", type=click.Path(path_type=Path))
@option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The picture; may be repeated, for a bundle with --images.",
    group=_ANSWER,
)
@option(
    "--prompt",
    help="The question; with several pictures, <image> marks each one's place.",
    group=_ANSWER,
)
@option(
    "--data",
    metavar="FILE",
    help="In place of both, a JSON Lines file with image and prompt: a line per answer, --batch at once.",
    group=_ANSWER,
)
@option(
    "--max-new-tokens",
    default=128,
    show_default=True,
    type=click.IntRange(min=1),
    help="Stop after so many.",
    group=_ANSWER,
)
@option(
    "--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be repeated.", group=_ANSWER
)
@option(
    "--temperature",
    type=float,
    help="Draw tokens from their scores divided by this.  [default: 0, the likeliest token]",
    group=_SAMPLING,
)
@option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Draw only from the likeliest tokens that together have this share.",
    group=_SAMPLING,
)
@option(
    "--top-k",
    type=int,
    default=0,
    help="Draw only from so many of the likeliest.  [default: from all]",
    group=_SAMPLING,
)
@option("--seed", type=int, help="The same seed gives the same answer.  [default: another each time]", group=_SAMPLING)
@threads_option()
@option("--stats", is_flag=True, help="Print times and token counts on stderr.")
@unsealed_option
@json_option
def command(
    *,
    bundle: Path,
    images: tuple[Path, ...],
    prompt: str | None,
    data: str | None,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float,
    top_k: int,
    seed: int | None,
    stop: tuple[str, ...],
    threads: int | None,
    stats: bool,
    as_json: bool,
) -> None:
    """Answer a question about a picture, or several; the text appears on stdout as it is generated."""
    from lmmprune.api.model import load

    if data is not None:
        if images or prompt is not None:
            raise click.UsageError("--data brings pictures and prompts: leave out --image and --prompt")
        from lmmprune.compiler.cli.run_data import answer_all
        from lmmprune.compiler.runtime.sampling import Sampling

        sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        answer_all(bundle, data, max_new_tokens, sampling, stop, threads, stats=stats, as_json=as_json)
        return
    if not images or prompt is None:
        raise click.UsageError(f"missing option '{'--prompt' if images else '--image'}'")
    with load(bundle, threads=threads) as model:
        answer = model.answer(
            images,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=stop,
        )
        for piece in answer:
            if not as_json:
                click.echo(piece, nl=False)
    if as_json:
        kept = None if answer.kept is None else answer.kept.tolist()
        figures = {"load_ms": model.load_ms, **answer.stats.as_dict()}
        print_json({"answer": answer.text, "tokens": answer.tokens, "kept_indices": kept, "stats": figures})
        return
    click.echo()
    for cut, own in zip(answer.stats.tiles, answer.stats.own_tiles, strict=True):
        if cut != own:
            note(f"cut into {cut} tiles; the checkpoint's own processor makes it {own}, which the bundle doesn't have")
    if stats:
        click.echo(f"load {model.load_ms:.0f} ms, {_line(answer.stats)}", err=True)  # asked for, also with -q


def _line(stats: Stats) -> str:
    each = "" if stats.ms_per_token is None else f" ({stats.ms_per_token:.2f} ms each)"
    tokens = f"{stats.tokens_before} -> {stats.image_tokens}{_bucket(stats)}"
    return (
        f"preprocess {stats.preprocess_ms:.1f} ms, vision {stats.vision_ms:.1f} ms, prefill {stats.prefill_ms:.1f} ms, "
        f"decode {stats.decode_ms:.1f} ms{each}; image tokens {tokens}{_of(stats)}, "
        f"prompt {stats.prompt_tokens}, new {stats.new_tokens} (finished: {stats.finish_reason})"
    )


def _of(stats: Stats) -> str:
    tiles = f" in {', '.join(stats.tiles)} tiles" if stats.tiles else ""
    return (f" of {stats.images} pictures" if stats.images > 1 else "") + tiles


def _bucket(stats: Stats) -> str:
    """Say which of several counts was taken, and why."""
    if stats.dynamic_count is None:
        return ""
    enough = "the smallest bucket for" if stats.image_tokens >= stats.dynamic_count else "the largest bucket, short of"
    return f" ({enough} this picture's own {stats.dynamic_count})"
