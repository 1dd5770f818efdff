"""``lmmprune run``: answer a question about a picture, or about several."""

from __future__ import annotations

from pathlib import Path

import click

from lmmprune.compiler.cli.answering import ANSWER, answer_options, stats_line
from lmmprune.compiler.cli.command import Command, argument, option
from lmmprune.compiler.cli.options import threads_option, unsealed_option
from lmmprune.compiler.cli.output import json_option, note, print_json
from lmmprune.compiler.cli.seen import check_seen, read_video


@click.command("run", cls=Command, example='lmmprune run out/ --image photo.jpg --prompt "What is this?"')
@argument("bundle", type=click.Path(path_type=Path))
@option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The picture; may be repeated, for a bundle with --images.",
    group=ANSWER,
)
@option("--video", type=click.Path(path_type=Path), help="The video, for a bundle with --frames.", group=ANSWER)
@option("--frames", type=int, metavar="N", help="Frames of it; as many as the bundle was exported for.", group=ANSWER)
@option(
    "--prompt",
    help="The question; with several pictures, <image> marks each one's place.",
    group=ANSWER,
)
@option(
    "--data",
    metavar="FILE",
    help="In place of both, a JSON Lines file with image and prompt: a line per answer, --batch at once.",
    group=ANSWER,
)
@answer_options
@threads_option()
@option("--stats", is_flag=True, help="Print times and token counts on stderr.")
@unsealed_option
@json_option
def command(
    *,
    bundle: Path,
    images: tuple[Path, ...],
    video: Path | None,
    frames: int | None,
    prompt: str | None,
    data: str | None,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float,
    top_k: int,
    seed: int | None,
    stop: tuple[str, ...],
    prefill_chunk: int | None,
    threads: int | None,
    stats: bool,
    as_json: bool,
) -> None:
    """Answer a question about a picture, several, or a video; the text appears on stdout as it is generated."""
    from lmmprune.api.model import load

    if data is not None:
        if images or prompt is not None or video is not None:
            raise click.UsageError("--data brings pictures and prompts: leave out --image, --video and --prompt")
        from lmmprune.compiler.cli.run_data import answer_all
        from lmmprune.compiler.runtime.sampling import Sampling

        sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        answer_all(bundle, data, max_new_tokens, sampling, stop, threads, stats=stats, as_json=as_json)
        return
    if prompt is None:
        raise click.UsageError("missing option '--prompt'")
    check_seen(images, video, frames)
    with load(bundle, threads=threads, prefill_chunk=prefill_chunk) as model:
        answer = model.answer(
            images if video is None else read_video(model.runtime, video, frames),
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
        line = stats_line(answer.stats, video=video is not None)
        click.echo(f"load {model.load_ms:.0f} ms, {line}", err=True)  # asked for, also with -q
