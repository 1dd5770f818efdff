"""What commands that answer are asked about: pictures or a video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmmprune.compiler.bundle.video import NO_VIDEO
from lmmprune.errors import InputError

if TYPE_CHECKING:
    from lmmprune.compiler.bundle.interface import Interface
    from lmmprune.compiler.runtime.image_features import ImageFeatures
    from lmmprune.compiler.runtime.runtime import Runtime


def check_seen(images: Sequence[Path], video: Path | None, frames: int | None) -> None:
    """Refuse neither pictures nor a video, and both.

    Raises:
        UsageError: That was given.
    """
    if video is None and frames is not None:
        raise click.UsageError("--frames is of a video: add --video FILE")
    if images and video is not None:
        raise click.UsageError("--image and --video exclude each other: give one")
    if not images and video is None:
        raise click.UsageError("Missing option '--image': give pictures, or --video FILE")


def check_kind(interface: Interface, video: Path | None) -> None:
    """Refuse a video where a bundle answers about pictures, and pictures where it answers about a video.

    Raises:
        InputError: The other kind was given.
    """
    if interface.video is not None and video is None:
        raise InputError(interface.video.no_pictures)
    if interface.video is None and video is not None:
        raise InputError(NO_VIDEO)


def read_video(runtime: Runtime, video: Path, frames: int | None) -> list[ImageFeatures]:
    """Return the views of a video, once ``--frames``, if it was given, is what the bundle takes.

    Raises:
        InputError: It takes another number, or pictures, or the video can't be read.
    """
    taken = runtime.bundle.manifest.video
    if taken is not None and frames not in (None, taken.frames):
        raise InputError(
            f"--frames {frames}: this bundle takes {taken.takes}; leave it out, or export with --frames {frames}"
        )
    return runtime.encode_video(video)
