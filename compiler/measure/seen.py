"""Read what a bundle is measured on: pictures, or a video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lmmprune.compiler.bundle.interface import Interface
from lmmprune.compiler.runtime.open_picture import load_image
from lmmprune.compiler.runtime.open_video import Clip, load_clip
from lmmprune.errors import InputError


def load_seen(interface: Interface, paths: Sequence[Path]) -> list[Image.Image] | Clip:
    """Return the pictures of a prompt, or the frames that a bundle takes of its video.

    Raises:
        InputError: They can't be read, or there are several videos.
        MissingExtraError: PyAV isn't installed.
    """
    if interface.video is None:
        return [load_image(path) for path in paths]
    if len(paths) != 1:
        raise InputError(
            f"{len(paths)} files, this bundle answers about {interface.video.takes}: give one with --video"
        )
    return load_clip(paths[0], interface.video)
