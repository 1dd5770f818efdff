"""Checkpoints as they lie on the hub whose processors cut pictures into tiles, and their exports: each made once."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

from hub_layouts import LAYOUTS, oracle
from hub_layouts.layout import Layout
from hub_layouts.one_trace import one_trace
from PIL import Image
from short_request import short_request

from lmmprune.compiler.export.export import export
from lmmprune.compiler.export.request import Report
from lmmprune.compiler.export.trace import shared_trace

# What switches the processor's tiles on, and shapes of which each gets another grid.
SPLITS: dict[str, tuple[dict[str, Any], tuple[tuple[int, int], ...]]] = {
    "SmolVLM-256M-Instruct": ({"do_image_splitting": True}, ((90, 64), (64, 20), (30, 90))),
    "SmolVLM2-256M-Video-Instruct": ({"do_image_splitting": True}, ((64, 20),)),
    "Idefics3-8B-Llama3": ({"do_image_splitting": True}, ((90, 64), (25, 100))),
    "InternVL3-1B-hf": ({"crop_to_patches": True}, ((90, 64), (100, 100), (50, 50), (40, 200))),
}
FEW = ((1, 1), (2, 2), (1, 3))
oracle_picture = oracle.picture


class Tiled:
    """A layout on disk whose processor cuts pictures, and its exports."""

    def __init__(self, name: str, work: Path) -> None:
        self.layout = dataclasses.replace(LAYOUTS[name], call=SPLITS[name][0])
        self.folder = work / "checkpoint"
        self.folder.mkdir()
        self.layout.write(self.folder, self.layout.layers)
        self.work, self.traced = work, shared_trace()
        self.done: dict[str, Report] = {}

    def bundle(self, **options: Any) -> Path:
        """Return the bundle with these options of an export."""
        name = "-".join(f"{key}={value}" for key, value in options.items()).replace(" ", "")
        if name not in self.done:
            with one_trace():
                request = short_request(model=str(self.folder), output=self.work / name, **options)
                self.done[name] = export(request, traced=self.traced)
        return self.work / name


_made: dict[str, Tiled] = {}


def tiled(name: str) -> Tiled:
    """Return a layout by its name; all tests of a process share it."""
    if name not in _made:
        _made[name] = Tiled(name, Path(tempfile.mkdtemp(dir=os.environ["LMMPRUNE_TESTS"], prefix="tiles-")))
    return _made[name]


def blocks(layout: Layout, seed: int = 3) -> Image.Image:
    """Return the oracle's picture, turned on its side where the seed is odd: another grid."""
    image = oracle_picture(layout, seed)
    return image.transpose(Image.Transpose.ROTATE_90) if seed % 2 else image
