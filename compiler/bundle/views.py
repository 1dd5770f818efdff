"""Bundles that serve pictures of several sizes, or cut into several grids of tiles: one view of a bundle at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TypeVar

from lmmprune.compiler.bundle.interface import Interface, View

I = TypeVar("I", bound=Interface)  # noqa: E741 - the type of an interface, a manifest among them
MOST_SIZES = 64
"""Sizes or grids of a bundle."""


def main_view(interface: Interface) -> View:
    """Return the view that an interface states itself: its only one, or the one with the most tokens."""
    return View(
        graph=interface.vision,
        grid=interface.grid,
        tiles=interface.tiles,
        schedule=interface.schedule,
        image_tokens=interface.image_tokens,
        selection=interface.selection,
    )


def seen_as(interface: I, view: View | None) -> I:
    """Return an interface as if its pictures had this one size; None: as it is.

    The decoder stays what it is: its rows of features, and what places of several pictures begin at, aren't to be asked
    of the result.
    """
    if view is None or not interface.sizes:
        return interface
    there = any(output.name == interface.kept for output in view.graph.outputs)
    return dataclasses.replace(
        interface,
        vision=view.graph,
        grid=view.grid,
        tiles=view.tiles,
        schedule=view.schedule,
        image_tokens=view.image_tokens,
        kept=interface.kept if there else None,
        selection=view.selection,
        sizes=(),
    )


def seen_by(interface: I, component: str) -> I:
    """Return an interface as if its pictures had the one size that a component is of; as it is for what serves all."""
    return seen_as(interface, next((view for view in interface.sizes if component in view.graphs), None))


def counts_of_sizes(interface: Interface) -> str:
    """Say what each size or grid of a bundle keeps, to be said in place of one count; nothing where there is one."""
    return ", ".join(f"{view.tokens_before} -> {view.image_tokens} at {view.name}" for view in interface.sizes)


def faults_of_views(interface: Interface) -> Iterator[tuple[str, object, str]]:
    """Yield what can't be about the sizes of a bundle: field, what it is, what it must be."""
    sizes, main = interface.sizes, main_view(interface)
    if not sizes:
        return
    if not 2 <= len(sizes) <= MOST_SIZES:
        yield "sizes", len(sizes), f"2 to {MOST_SIZES} of them"
    if sizes.count(main) != 1:
        yield "sizes", sizes.count(main), "the one of 'vision' among them, once"
    if len({view.name for view in sizes}) < len(sizes) or len({view.component for view in sizes}) < len(sizes):
        yield "sizes", [view.name for view in sizes], "names of which none comes twice"
    if interface.buckets or interface.joint or interface.decoder_sites or interface.tile_grids is not None:
        yield "sizes", len(sizes), "none with buckets, a joint choice, tiles seen one by one, or cuts in the decoder"
    for place, view in enumerate(sizes):
        field = f"sizes[{place}]"
        if (view.tiles is None) != (main.tiles is None):
            yield f"{field}.tiles", view.tiles, "tiles for all sizes, or for none"
        if view.component != f"vision_{view.name}" and view != main:
            yield f"{field}.graph.file", view.graph.file, f"vision_{view.name}.onnx"
        if view.selection is not None and view != main and view.selection.file != f"selection_{view.name}.onnx":
            yield f"{field}.selection.file", view.selection.file, f"selection_{view.name}.onnx"
        if view.tokens_before > main.tokens_before or view.image_tokens > main.image_tokens:
            yield f"{field}.image_tokens", view.image_tokens, f"{main.image_tokens} of {main.tokens_before} at most"
