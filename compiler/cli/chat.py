"""``lmmprune chat``: ask question after question about a picture."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lmmprune.compiler.cli.answering import ANSWER, answer_options
from lmmprune.compiler.cli.command import Command, argument, option
from lmmprune.compiler.cli.options import threads_option, unsealed_option
from lmmprune.compiler.cli.values import size
from lmmprune.errors import InputError


@click.command("chat", cls=Command, example="lmmprune chat out/ --image photo.jpg")
@argument("bundle", type=click.Path(path_type=Path))
@option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The picture; may be repeated, for a bundle with --images. Or give one later, as /image FILE.",
    group=ANSWER,
)
@answer_options
@option(
    "--no-reuse",
    is_flag=True,
    help="Read the whole conversation anew for each question, and choose anew which tokens stay.",
    group=ANSWER,
)
@option(
    "--image-cache",
    default="64MiB",
    show_default=True,
    type=size,
    help="Visual tokens kept of pictures that may come again.",
)
@threads_option()
@option("--stats", is_flag=True, help="Print times and token counts on stderr behind each answer.")
@unsealed_option
@option("--json", "as_json", is_flag=True, help="Print each question and its answer as a line of JSON instead.")
def command(
    *,
    bundle: Path,
    images: tuple[Path, ...],
    max_new_tokens: int,
    temperature: float | None,
    top_p: float,
    top_k: int,
    seed: int | None,
    stop: tuple[str, ...],
    prefill_chunk: int | None,
    no_reuse: bool,
    image_cache: int,
    threads: int | None,
    stats: bool,
    as_json: bool,
) -> None:
    """Ask question after question about a picture, each a line; the model knows what was said before.

    At a terminal, /help says what else a line may be. Questions may also come through a pipe: the answers are then all
    that is printed, and the first mistake ends it.
    """
    from lmmprune.api.model import load
    from lmmprune.compiler.cli.chat_loop import ChatLoop

    with load(bundle, threads=threads, image_cache=image_cache, prefill_chunk=prefill_chunk) as model:
        if (video := model.manifest.video) is not None:
            raise InputError(
                f"this bundle answers about {video.takes}, and chat asks about pictures: 'lmmprune run --video' asks"
                " once; in Python give encode_video's views to Model.conversation"
            )
        settings = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "seed": seed,
            "stop": stop,
        }
        terminal = sys.stdin.isatty()
        loop = ChatLoop(model, settings, reuse=not no_reuse, terminal=terminal, stats=stats, as_json=as_json)
        loop.begin(images)
        loop.run()
