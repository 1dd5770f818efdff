"""``lmmprune show``: draw the kept patches over a picture, site by site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmmprune.compiler.cli.command import GENERAL, Command, option
from lmmprune.compiler.cli.options import force_option, output_option, threads_option
from lmmprune.compiler.cli.output import json_option, note, print_json, show
from lmmprune.errors import BundleError, InputError, suggestion

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lmmprune.compiler.bundle.manifest import Manifest
    from lmmprune.compiler.runtime.draw import Panel
    from lmmprune.compiler.runtime.image_features import SiteTokens

_QUESTION = "What is in the picture?"
_QUOTED = 60  # characters of the question that stand below the drawing


@click.command("show", cls=Command, example="lmmprune show out/ --image photo.jpg -o kept.png")
@click.argument("bundle", type=click.Path(path_type=Path))
@option("--image", required=True, type=click.Path(path_type=Path), help="The picture.")
@output_option("The drawing.", dir_okay=False, group=GENERAL)
@option("--prompt", help=f"The question; sites in the decoder depend on it.  [default: {_QUESTION}]", metavar="TEXT")
@option("--site", help="Draw this site only, such as vision_layer_3.", metavar="NAME")
@threads_option()
@force_option("a drawing that is there", group=GENERAL)
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
    import numpy as np
    from PIL import Image

    from lmmprune.compiler.bundle.bundle import Bundle
    from lmmprune.compiler.bundle.replace import check_file
    from lmmprune.compiler.runtime.check_text import check_text
    from lmmprune.compiler.runtime.draw import draw_panels, evenly
    from lmmprune.compiler.runtime.open_picture import load_image
    from lmmprune.compiler.runtime.runtime import Runtime

    opened = Bundle.open(bundle)
    manifest = opened.manifest
    check_text(prompt or "")
    if output.suffix.lower() not in Image.registered_extensions():
        raise InputError(f"can't write '{output}': give it the suffix of a picture, as .png")
    if not output.parent.is_dir():
        raise InputError(f"can't write '{output}': there is no directory '{output.parent}'")
    check_file(output, force=force)
    wanted = _wanted(manifest, site)
    asked = any(inside for inside in wanted.values())
    if prompt is not None and not asked:
        note("--prompt changes nothing: what is drawn is cut before the question is read")
    picture = load_image(image)
    runtime = Runtime(opened, threads=threads)
    visual = runtime.encode_image(picture)
    found = dict(visual.sites)
    if asked:
        if prompt is None and not as_json:
            note(f"sites in the decoder depend on the question; asked: {_QUESTION} (give yours with --prompt)")
        prompt = _QUESTION if prompt is None else prompt
        found |= runtime.prefill_sites(visual, runtime.prompter.encode(prompt))
    if missing := [name for name in wanted if name not in found]:
        raise BundleError(f"the graphs of '{opened.path}' don't say what '{missing[0]}' keeps: export again")
    sites = {name: found[name] for name in wanted}
    drawn = evenly(list(sites))
    panels, footer = _panels(manifest, {name: sites[name] for name in drawn}, len(sites), prompt if asked else None)
    drawing = draw_panels(runtime.preprocessor.pixels(picture), panels, manifest.raster, footer)
    try:
        drawing.save(output)
    except OSError as error:
        output.unlink(missing_ok=True)
        raise InputError(f"can't write '{output}' ({error.strerror or error})") from error
    if as_json:
        kept = np.arange(manifest.tokens_before) if visual.kept is None else visual.kept
        print_json(
            {
                "output": str(output),
                "prompt": prompt if asked else None,
                "tokens_before": manifest.tokens_before,
                "kept_indices": kept.tolist(),
                "sites": [_row(name, tokens, name in drawn) for name, tokens in sites.items()],
            }
        )
        return
    tokens = [f"{name}  {_counts(one)} visual tokens{_merges(one)}" for name, one in sites.items()]
    some = f", {_some(len(drawn), len(sites))}; --site draws any one" if len(drawn) < len(sites) else ""
    show(*(tokens or [panels[0].caption]), f"drawn in {output}{some}")


def _wanted(manifest: Manifest, site: str | None) -> dict[str, bool]:
    """Return the sites to draw, and whether each lies in the decoder."""
    known = {s.site: s.in_decoder for s in manifest.schedule if s.tokens_out < s.tokens_in}
    if site is None:
        return known
    if site not in known:
        hint = suggestion(site, known) if known else ": it isn't pruned; leave out --site"
        raise InputError(f"the bundle removes no visual tokens at '{site}'{hint}")
    return {site: known[site]}


def _panels(
    manifest: Manifest, sites: Mapping[str, SiteTokens], available: int, prompt: str | None
) -> tuple[list[Panel], str]:
    """Return the panels and the line below them."""
    import numpy as np

    from lmmprune.compiler.runtime.draw import Panel
    from lmmprune.compiler.runtime.tiles import on_raster

    about = [manifest.method or "not pruned", manifest.precision.int8 or manifest.precision.dtype]
    below = [] if prompt is None else [f'asked: "{_short(prompt)}"']
    if len(sites) < available:
        below.insert(0, _some(len(sites), available))
    if len(sites) > 1:
        below = [*about, *below]
    panels = []
    for name, tokens in sites.items():
        caption = f"{name}  {_counts(tokens)}"
        if len(sites) == 1:
            caption = _dotted([f"{caption} visual tokens", *about])
        shown = on_raster(tokens.kept, manifest.grid, manifest.tiles)
        panels.append(Panel(kept=shown, received=tokens.received, caption=caption, note=_not_shown(tokens, shown)))
    if not sites:
        everything = np.arange(manifest.tokens_before)
        caption = _dotted([f"{len(everything)} -> {len(everything)} visual tokens", *about])
        shown = on_raster(everything, manifest.grid, manifest.tiles)
        panels.append(Panel(kept=shown, received=np.zeros(len(everything), bool), caption=caption))
    return panels, _dotted(below)


def _short(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= _QUOTED else f"{line[: _QUOTED - 3]}..."


def _dotted(parts: Sequence[str]) -> str:
    return "  ·  ".join(parts)


def _some(drawn: int, available: int) -> str:
    return f"{drawn} of {available} sites, evenly chosen"


def _counts(tokens: SiteTokens) -> str:
    return f"{tokens.tokens_in} -> {len(tokens.kept)}"


def _merges(tokens: SiteTokens) -> str:
    count = int(tokens.received.sum())
    return f", others merged into {count}" if count else ""


def _not_shown(tokens: SiteTokens, shown: NDArray[np.int64]) -> str:
    """Return what the drawing hides: tokens of the overview, newlines, and those of no place, as CLS or a sum."""
    none = int((tokens.kept < 0).sum())
    beside = int((shown < 0).sum()) - none
    drawn = f"{len(shown) - none - beside} patches"
    parts = [f" +{beside} of the overview or newlines"] if beside else []
    parts += [f" +{none} token{'s' * (none > 1)} of no patch"] if none else []
    return drawn + "".join(parts) if parts else ""


def _row(name: str, tokens: SiteTokens, drawn: bool) -> dict[str, object]:
    return {
        "site": name,
        "tokens_in": tokens.tokens_in,
        "tokens_out": len(tokens.kept),
        "kept": tokens.kept.tolist(),
        "received": tokens.received.tolist(),
        "drawn": drawn,
    }
