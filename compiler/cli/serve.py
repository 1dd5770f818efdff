"""``lmmprune serve``: answer over HTTP as OpenAI's chat API does."""

from __future__ import annotations

from pathlib import Path

import click

from lmmprune.compiler.cli.command import Command, argument, option
from lmmprune.compiler.cli.options import threads_option, unsealed_option
from lmmprune.compiler.cli.output import note
from lmmprune.compiler.cli.values import size
from lmmprune.compiler.cli.verbosity import WANTED

_ADDRESS, _LOAD, _LIMITS, _PICTURES = "Address", "Load", "Limits", "Pictures"


@click.command("serve", cls=Command, example="lmmprune serve out/ --port 8000")
@argument("bundles", nargs=-1, required=True, metavar="[NAME=]DIR...")
@option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.", group=_ADDRESS)
@option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port; 0 takes a free one.",
    group=_ADDRESS,
)
@option(
    "--api-key",
    "api_keys",
    multiple=True,
    metavar="KEY",
    help="A key that requests must bear; may be repeated. Better in the environment, as LMMPRUNE_SERVE_API_KEY.",
    group=_ADDRESS,
)
@option(
    "--max-concurrency",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Answers of a bundle that grow at the same time.",
    group=_LOAD,
)
@option(
    "--queue",
    default=32,
    show_default=True,
    type=click.IntRange(min=0),
    help="Requests of a bundle that may wait; more get 429.",
    group=_LOAD,
)
@option(
    "--conversations",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Conversations of a bundle that are kept in its decoder's cache, to go on from.",
    group=_LOAD,
)
@option(
    "--timeout",
    default=300.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds that a request may take.",
    group=_LOAD,
)
@option(
    "--grace",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="Seconds for what is under way when the server is told to end.",
    group=_LOAD,
)
@option(
    "--max-tokens",
    default=1024,
    show_default=True,
    type=click.IntRange(min=1),
    help="New tokens of an answer at most.",
    group=_LIMITS,
)
@option("--max-body", default="20MiB", show_default=True, type=size, help="Size of a request at most.", group=_LIMITS)
@option(
    "--max-pixels",
    default=32_000_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Pixels of a picture at most.",
    group=_LIMITS,
)
@option(
    "--allowed-media-domains",
    "media_domains",
    multiple=True,
    metavar="HOST",
    help="Fetch pictures by https from this host; may be repeated.",
    group=_PICTURES,
)
@option(
    "--allowed-local-media-path",
    "media_path",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Read file: pictures below this directory.",
    group=_PICTURES,
)
@option(
    "--image-cache",
    default="64MiB",
    show_default=True,
    type=size,
    help="Visual tokens kept of pictures that come again, of each bundle.",
    group=_PICTURES,
)
@threads_option()
@unsealed_option
def command(
    *,
    bundles: tuple[str, ...],
    host: str,
    port: int,
    api_keys: tuple[str, ...],
    max_concurrency: int,
    queue: int,
    conversations: int,
    timeout: float,
    grace: float,
    max_tokens: int,
    max_body: int,
    max_pixels: int,
    media_domains: tuple[str, ...],
    media_path: Path | None,
    image_cache: int,
    threads: int | None,
) -> None:
    """Answer over HTTP as OpenAI's chat API does; several bundles are served under their names."""
    from lmmprune.api.serve import require_serve, serve

    require_serve()
    from lmmprune.compiler.serve.options import ServeOptions
    from lmmprune.compiler.serve.served import names_of

    options = ServeOptions(
        max_concurrency=max_concurrency,
        queue=queue,
        conversations=conversations,
        timeout=timeout,
        grace=grace,
        max_tokens=max_tokens,
        max_body=max_body,
        max_pixels=max_pixels,
        api_keys=api_keys,
        media_domains=media_domains,
        media_path=media_path,
        image_cache=image_cache,
        access_log=not WANTED.quiet,
    )
    named = names_of(bundles)
    serve(
        named,
        host=host,
        port=port,
        options=options,
        threads=threads,
        ready=lambda url: note(f"{', '.join(named)} at {url}"),
    )
