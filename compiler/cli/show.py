"""``lmmprune show``: draw the kept patches over a picture, site by site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmmprune.compiler.cli.command import GENERAL, Command, argument, option
from lmmprune.compiler.cli.options import force_option, output_option, threads_option, unsealed_option
from lmmprune.compiler.cli.output import json_option, note, print_json, show

if TYPE_CHECKING:
    from lmmprune.compiler.runtime.image_features import SiteTokens

_QUESTION = "What is in the picture?"  # as the run-time's, which --help must not load


@click.command("show", cls=Command, example="lmmprune show out/ --image photo.jpg -o kept.png")
@argument("bundle", type=click.Path(path_type=Path))
@option("--image", required=True, type=click.Path(path_type=Path), help="The picture.")
@output_option("The drawing.", dir_okay=False, group=GENERAL)
@option("--prompt", help=f"The question; sites in the decoder depend on it.  [default: {_QUESTION}]", metavar="TEXT")
@option("--site", help="Draw this site only, such as vision_layer_3.", metavar="NAME")
@threads_option()
@force_option("a drawing that is there", group=GENERAL)
@unsealed_option
@json_option
def command(
    bundle: Path,
    image: Path,
    output: Path,
    prompt: str | None,
    site: str | None,
    threads: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Draw which patches a bundle keeps of a picture, one panel per site.

    Dropped patches are dark, kept regions have an amber outline, and patches that others were merged into at that site
    a blue frame.
    """
    from lmmprune.compiler.bundle.bundle import Bundle
    from lmmprune.compiler.runtime.open_picture import load_image
    from lmmprune.compiler.runtime.runtime import Runtime
    from lmmprune.compiler.runtime.show_kept import check_drawing, show_kept, sites_to_show

    opened = Bundle.open(bundle)
    check_drawing(output, force=force)
    drawing = show_kept(Runtime(opened, threads=threads), load_image(image), prompt=prompt, site=site)
    drawing.save(output)
    asked = any(sites_to_show(opened.manifest, site).values())
    if prompt is not None and not asked:
        note("--prompt changes nothing: what is drawn is cut before the question is read")
    if prompt is None and asked and not as_json:
        note(f"sites in the decoder depend on the question; asked: {_QUESTION} (give yours with --prompt)")
    sites, drawn = drawing.sites, drawing.drawn
    if as_json:
        print_json(
            {
                "output": str(output),
                "prompt": drawing.prompt,
                "tokens_before": drawing.tokens_before,
                "kept_indices": drawing.kept.tolist(),
                "sites": [_row(name, tokens, name in drawn) for name, tokens in sites.items()],
            }
        )
        return
    tokens = [f"{name}  {one.tokens_in} -> {len(one.kept)} visual tokens{_merges(one)}" for name, one in sites.items()]
    some = f", {len(drawn)} of {len(sites)} sites, evenly chosen; --site draws any one"
    show(*(tokens or drawing.captions), f"drawn in {output}{some if len(drawn) < len(sites) else ''}")


def _merges(tokens: SiteTokens) -> str:
    count = int(tokens.received.sum())
    return f", others merged into {count}" if count else ""


def _row(name: str, tokens: SiteTokens, drawn: bool) -> dict[str, object]:
    return {
        "site": name,
        "tokens_in": tokens.tokens_in,
        "tokens_out": len(tokens.kept),
        "kept": tokens.kept.tolist(),
        "received": tokens.received.tolist(),
        "drawn": drawn,
    }
