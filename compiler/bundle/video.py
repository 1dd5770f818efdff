"""What a bundle says of the videos that it answers about."""

from __future__ import annotations

from dataclasses import dataclass

SAMPLINGS = ("floor", "middle", "ends")
"""Which frames of a clip are taken, by name; see ``runtime.open_video``."""
NO_VIDEO = "this bundle answers about pictures: give them, or export with --frames N for videos"
"""What is said to whoever gives a video where pictures are asked about."""


@dataclass(frozen=True, kw_only=True)
class Video:
    """A clip of so many frames. One run of the vision graph sees ``patch`` of them, one view; a prompt has all views.

    Attributes:
        frames: Frames that are taken of a clip, a multiple of ``patch``.
        patch: Frames of a view.
        sampling: Which frames of a clip those are, one of ``SAMPLINGS``.
        view: What stands for a view in a prompt: the placeholder once, and perhaps ``{number}`` (of the view, from 1
            on) or ``{seconds}`` (of its middle, with one digit behind the point).
        between: What stands between two views.
        newline: Whether a view's last token is a newline, which only the last view of a clip has.
        together: With M-RoPE, whether all views lie in one grid, one behind the other; else each is a picture.
        pace: There, how many numbers a second takes; None: a view takes one.
    """

    frames: int
    patch: int
    sampling: str
    view: str
    between: str = ""
    newline: bool = False
    together: bool = False
    pace: float | None = None

    @property
    def views(self) -> int:
        """How many views a clip has."""
        return self.frames // self.patch

    @property
    def no_pictures(self) -> str:
        """What is said to whoever gives pictures."""
        return (
            f"this bundle answers about {self.takes}, not about pictures: give one with --video (in eval's data as"
            " 'video', in Python with encode_video), or export without --frames"
        )

    @property
    def takes(self) -> str:
        """What is taken, to be said in messages."""
        return f"a video of {self.frames} frames"
