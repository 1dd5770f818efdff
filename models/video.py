"""How a family sees a video: frames, the views that the tower makes of them, and what a prompt says of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lmmprune.errors import ModelError

TOKEN = "{token}"
"""What the text of a view says where its placeholder stands."""
MOST_VIEWS = 64
"""Of a video."""


@dataclass(frozen=True, kw_only=True)
class VideoSpec:
    """What a family does with the frames of a video, as data.

    Attributes:
        token: What a chat template writes for a video, also the placeholder of its tokens unless they are a picture's.
        as_pictures: Whether each view's tokens have the placeholder of a picture's.
        view: What the processor writes for a view: ``{token}`` once, perhaps ``{number}`` or ``{seconds}``.
        between: What it writes between two.
        sampling: Which frames its processor takes; see ``runtime.open_video``.
        patch: Frames of a view.
        newline: Whether a newline token follows the last view.
        together: Whether M-RoPE numbers all views in one grid.
        pace: Reads how many of its numbers a second takes; None: a view takes one.
    """

    token: str
    as_pictures: bool = False
    view: str = TOKEN
    between: str = ""
    sampling: str = "floor"
    patch: int = 1
    newline: bool = False
    together: bool = False
    pace: Callable[[Any], float] | None = None


def see_video(config: Any, frames: int) -> None:
    """Let a model see videos of so many frames instead of pictures; changed in place.

    The number goes with the configuration wherever that goes, as that of ``configure.put_together`` does.
    """
    config.video_frames = frames


def sees_video(config: Any) -> bool:
    """Return whether ``see_video`` was said."""
    return getattr(config, "video_frames", None) is not None


def check_frames(spec: VideoSpec | None, title: str, frames: int) -> VideoSpec:
    """Refuse videos of so many frames.

    Args:
        spec: Of the family.
        title: Its name.
        frames: Wanted.

    Raises:
        ModelError: The family takes none, or not so many.
    """
    if spec is None:
        raise ModelError(f"--frames: {title} takes no videos here; leave it out")
    if not 2 * spec.patch <= frames <= MOST_VIEWS * spec.patch or frames % spec.patch:
        steps = f", a multiple of {spec.patch}" if spec.patch > 1 else ""
        raise ModelError(f"--frames {frames}: expected {2 * spec.patch} to {MOST_VIEWS * spec.patch}{steps}")
    return spec
