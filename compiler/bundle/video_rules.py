"""What a manifest must say of videos, so that a clip, its prompt and the graphs fit each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lmmprune.compiler.bundle.expect import expect, one_of
from lmmprune.compiler.bundle.video import SAMPLINGS
from lmmprune.limits import bounded

if TYPE_CHECKING:
    from lmmprune.compiler.bundle.content import Content

_TEXT = 2**10
_FRAMES = 2**10
_PATCH = 16
_PACE = 1e6


def check_video(manifest: Content) -> None:
    """Hold what is said of videos against the rest.

    Raises:
        ValueError: It doesn't fit.
    """
    video = manifest.video
    if video is None:
        return
    bounded(video.patch, "video.patch", 1, _PATCH)
    bounded(video.frames, "video.frames", 1, _FRAMES)
    expect(video.frames % video.patch == 0, "video.frames", video.frames, f"a multiple of {video.patch}")
    expect(video.views == manifest.images, "video.frames", video.frames, f"{manifest.images} times {video.patch}")
    one_of("video.sampling", video.sampling, SAMPLINGS)
    token = manifest.prompt.image_token
    expect(video.view.count(token) == 1, "video.view", video.view, f"{token!r} in it once")
    expect(token not in video.between, "video.between", video.between, f"no {token!r} in it")
    for field in ("view", "between"):
        bounded(len(getattr(video, field)), f"the length of video.{field}", 0, _TEXT)
    held = video.pace is None or (math.isfinite(video.pace) and 0 <= video.pace <= _PACE)
    expect(held, "video.pace", video.pace, f"a number from 0 to {_PACE:g}")
    rows = manifest.position_rows > 1
    expect(rows or not video.together, "video.together", video.together, "false without M-RoPE")
