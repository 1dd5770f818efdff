"""Which patches a bundle keeps of a picture, as a drawing: one panel per site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lmmprune.compiler.bundle.atomic import replace_file
from lmmprune.compiler.bundle.manifest import Manifest
from lmmprune.compiler.bundle.replace import check_file
from lmmprune.compiler.bundle.tile_grids import Grid, images_of
from lmmprune.compiler.runtime.check_text import check_text
from lmmprune.compiler.runtime.draw import Panel, draw_panels, evenly
from lmmprune.compiler.runtime.image_features import SiteTokens
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.compiler.runtime.tiled_picture import grids_of
from lmmprune.compiler.runtime.tiles import on_raster, on_tiles
from lmmprune.errors import BundleError, InputError, suggestion

QUESTION = "What is in the picture?"
"""Asked where sites in the decoder are drawn and no question is given."""

_QUOTED = 60  # characters of the question that stand below the drawing


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """The kept patches over a picture.

    Attributes:
        image: The drawing: dropped patches are dark, kept regions have an amber outline, and patches that others were
            merged into at that site a blue frame.
        sites: What leaves each site, by its name, in the data's order; empty where nothing is pruned.
        drawn: Sites that have a panel.
        captions: What stands over the panels.
        kept: int64 ``[K]``, the patches that enter the decoder.
        tokens_before: Patches of the picture, N.
        prompt: The question that sites in the decoder depend on; None where there are none.
    """

    image: Image.Image
    sites: Mapping[str, SiteTokens]
    drawn: tuple[str, ...]
    captions: tuple[str, ...]
    kept: NDArray[np.int64]
    tokens_before: int
    prompt: str | None

    def save(self, output: Path) -> None:
        """Write the drawing as the kind of picture that its suffix names.

        Raises:
            InputError: The file can't be written.
        """
        kind = Image.registered_extensions()[output.suffix.lower()]
        try:
            with replace_file(output) as stream:
                self.image.save(stream, format=kind)
        except OSError as error:
            raise InputError(f"can't write '{output}' ({error.strerror or error})") from error


def check_drawing(output: Path, *, force: bool) -> None:
    """Refuse a file that no drawing can be written to, before anything slow begins.

    Raises:
        InputError: Its suffix names no kind of picture, there is no such folder, or it is there without ``force``.
    """
    if output.suffix.lower() not in Image.registered_extensions():
        raise InputError(f"can't write '{output}': give it the suffix of a picture, as .png")
    if not output.parent.is_dir():
        raise InputError(f"can't write '{output}': there is no directory '{output.parent}'")
    check_file(output, force=force)


def sites_to_show(manifest: Manifest, site: str | None) -> dict[str, bool]:
    """Return the sites to draw, and whether each lies in the decoder.

    Raises:
        InputError: The bundle doesn't prune at the one that was asked for.
    """
    known = {s.site: s.in_decoder for s in manifest.schedule if s.tokens_out < s.tokens_in}
    if site is None:
        return known
    if site not in known:
        hint = suggestion(site, known) if known else ": it isn't pruned; leave out --site"
        raise InputError(f"the bundle removes no visual tokens at '{site}'{hint}")
    return {site: known[site]}


def show_kept(runtime: Runtime, picture: Image.Image, *, prompt: str | None = None, site: str | None = None) -> Drawing:
    """Draw which patches a bundle keeps of a picture.

    Args:
        runtime: The bundle, loaded.
        picture: The picture.
        prompt: The question; sites in the decoder depend on it. None: ``QUESTION``.
        site: Draw this one only.

    Raises:
        InputError: The picture, the question or the site can't be used.
        BundleError: The graphs don't say what a site keeps.
    """
    manifest = runtime.bundle.manifest
    check_text(prompt or "")
    wanted = sites_to_show(manifest, site)
    visual = runtime.encode_image(picture)
    found, asked = dict(visual.sites), None
    if any(wanted.values()):
        asked = QUESTION if prompt is None else prompt
        encoded = runtime.prompter.encode(asked, image_tokens=visual.each, grids=grids_of([visual]))
        found |= runtime.prefill_sites(visual, encoded)
    if missing := [name for name in wanted if name not in found]:
        raise BundleError(f"the graphs of '{runtime.bundle.path}' don't say what '{missing[0]}' keeps: export again")
    sites = {name: found[name] for name in wanted}
    drawn = evenly(list(sites))
    grid = None if visual.picked is None else visual.picked.grid
    panels, footer = _panels(manifest, {name: sites[name] for name in drawn}, len(sites), asked, grid)
    before = manifest.tokens_before * (1 if grid is None else images_of(grid))
    rows, columns = (1, 1) if grid is None else grid
    raster = manifest.raster[0] * rows, manifest.raster[1] * columns
    return Drawing(
        image=draw_panels(runtime.preprocessor.pixels(picture), panels, raster, footer),
        sites=sites,
        drawn=tuple(drawn),
        captions=tuple(panel.caption for panel in panels),
        kept=np.arange(before) if visual.kept is None else visual.kept,
        tokens_before=before,
        prompt=asked,
    )


def _panels(
    manifest: Manifest, sites: Mapping[str, SiteTokens], available: int, prompt: str | None, grid: Grid | None
) -> tuple[list[Panel], str]:
    """Return the panels and the line below them; ``grid`` is of a picture whose tiles come one by one."""

    def shown_at(kept: NDArray[np.int64]) -> NDArray[np.int64]:
        return on_raster(kept, manifest.grid, manifest.tiles) if grid is None else on_tiles(kept, manifest.grid, grid)

    about = [manifest.method or "not pruned", manifest.precision.integers or manifest.precision.dtype]
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
        shown = shown_at(tokens.kept)
        panels.append(Panel(kept=shown, received=tokens.received, caption=caption, note=_not_shown(tokens, shown)))
    if not sites:
        everything = np.arange(manifest.tokens_before * (1 if grid is None else images_of(grid)))
        caption = _dotted([f"{len(everything)} -> {len(everything)} visual tokens", *about])
        shown = shown_at(everything)
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


def _not_shown(tokens: SiteTokens, shown: NDArray[np.int64]) -> str:
    """Return what the drawing hides: tokens of the overview, newlines, and those of no place, as CLS or a sum."""
    none = int((tokens.kept < 0).sum())
    beside = int((shown < 0).sum()) - none
    drawn = f"{len(shown) - none - beside} patches"
    parts = [f" +{beside} of the overview or newlines"] if beside else []
    parts += [f" +{none} token{'s' * (none > 1)} of no patch"] if none else []
    return drawn + "".join(parts) if parts else ""
