"""Clips for ``verify``: pictures one after the other, as if they were the frames of a video."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from lmmprune.compiler.bundle.video import Video
from lmmprune.compiler.runtime.open_video import Clip

# Frames in a second, so slow that a clip's numbers pass those of the question behind it where a second takes some.
_RATE = 0.25


def clip_of(pictures: Sequence[Image.Image], first: int, video: Video) -> Clip:
    """Return a clip of pictures, which begin again where they end; every third frame stands still."""
    places = list(range(video.frames))
    return Clip(
        frames=[pictures[(first + place - (place % 3 == 2)) % len(pictures)] for place in places],
        places=places,
        length=video.frames,
        rate=_RATE,
    )
