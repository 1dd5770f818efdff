"""Read some frames of a video, those that transformers' video processors take of it, with PyAV.

Which of the n frames of a video a clip of T has, by the name of the rule, for i = 0..T-1:

* ``floor``: ``floor(i n / T)`` (LLaVA-OneVision, Qwen2-VL, Qwen2.5-VL)
* ``middle``: ``floor((i + 1/2) n / T)`` (InternVL)
* ``ends``: ``round(i (n - 1) / (T - 1))``, halves to even (Qwen3-VL)
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from lmmprune.compiler.bundle.video import Video
from lmmprune.compiler.runtime.encoded import Clock
from lmmprune.compiler.runtime.open_picture import MAX_PIXELS
from lmmprune.errors import InputError, require, said

# A video that doesn't say how many frames a second has, has so many: what transformers takes then.
_RATE = 24.0
# A file of these kinds is a list of other files, or of addresses.
_LISTS = {"hls", "dash", "concat", "concatf", "image2", "sdp", "rtsp"}


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The frames that were taken of a video.

    Attributes:
        frames: RGB pictures, in their order.
        places: Which frames of the video they are, from 0 on.
        length: Frames of the whole video.
        rate: Frames of the video in a second.

    Example::

        clip = lmmprune.Clip(frames=pictures, places=range(8), length=8, rate=2.0)
        print(model.ask(model.encode_video(clip), "What happens?").text)
    """

    frames: Sequence[Image.Image]
    places: Sequence[int]
    length: int
    rate: float

    def clock(self, patch: int) -> Clock:
        """Return when the views of ``patch`` frames are: between their first frame and their last."""
        ends = [(self.places[first], self.places[first + patch - 1]) for first in range(0, len(self.places), patch)]
        seconds = tuple((first / self.rate + last / self.rate) / 2 for first, last in ends)
        # As if frames had been taken at one rate, which rounding to whole frames spoils.
        taken = len(self.places) / self.length * self.rate
        return Clock(seconds=seconds, interval=patch / taken)


def sample_places(sampling: str, length: int, frames: int) -> list[int]:
    """Return which frames of a video are taken.

    Args:
        sampling: The rule's name, see above.
        length: n.
        frames: T, at most n.
    """
    if sampling == "middle":
        return [(2 * i + 1) * length // (2 * frames) for i in range(frames)]
    if sampling == "ends":
        return [int(place) for place in np.linspace(0, length - 1, frames).round()]
    return [i * length // frames for i in range(frames)]


def load_clip(path: Path | str, video: Video) -> Clip:
    """Read the frames of a video that a bundle takes.

    Raises:
        InputError: The file is missing, isn't a video that FFmpeg can read, has no frames, or fewer than the bundle
            takes.
        MissingExtraError: PyAV isn't installed.
    """
    require("av", "video")
    try:
        with Path(path).open("rb") as file:
            length, rate = _length(file, str(path))
            if length < video.frames:
                raise InputError(
                    f"video '{path}' has {length} frame{'s' * (length != 1)}, this bundle takes {video.frames} of one:"
                    f" give a longer one, or export with fewer --frames"
                )
            places = sample_places(video.sampling, length, video.frames)
            return Clip(frames=_frames(file, str(path), places), places=places, length=length, rate=rate)
    except FileNotFoundError as error:
        raise InputError(f"there is no video '{path}'") from error
    except IsADirectoryError as error:
        raise InputError(f"'{path}' is a directory: give a video") from error


def _length(file: BinaryIO, name: str) -> tuple[int, float]:
    """Return how many frames a video has, and how many in a second; counted where the file doesn't say."""
    with _opened(file, name) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 0) or _RATE
        if (length := int(stream.frames)) > 0:
            return length, rate
        count = sum(1 for _ in _decoded(container, name))
    if not count:
        raise InputError(f"video '{name}' has no frames: give one that has")
    return count, rate


def _frames(file: BinaryIO, name: str, places: Sequence[int]) -> list[Image.Image]:
    found: dict[int, Image.Image] = {}
    with _opened(file, name) as container:
        for place, frame in enumerate(itertools.islice(_decoded(container, name), places[-1] + 1)):
            if place in places:
                found[place] = Image.fromarray(frame.to_ndarray(format="rgb24"))
    if not found:
        raise InputError(f"video '{name}' has no frames that can be decoded: give another")
    if missing := [place for place in places if place not in found]:
        raise InputError(f"video '{name}' says that it has more frames than the {missing[0]} in it: write it again")
    return [found[place] for place in places]


@contextlib.contextmanager
def _opened(file: BinaryIO, name: str) -> Iterator[Any]:
    """Give a container that FFmpeg has opened, with a video stream of a size that is served."""
    import av

    file.seek(0)
    try:
        # What a file names is opened nowhere.
        container = av.open(file, options={"protocol_whitelist": "none"})
    except (OSError, ValueError) as error:  # FFmpeg's own are among them
        raise InputError(f"'{name}' isn't a video that FFmpeg can read ({said(error)})") from error
    with container:
        if kinds := _LISTS.intersection(container.format.name.split(",")):
            raise InputError(f"'{name}' is a list of files ({', '.join(kinds)}): give one video")
        if not container.streams.video:
            raise InputError(f"'{name}' has no frames: there is no video in it")
        stream = container.streams.video[0]
        if stream.width * stream.height > MAX_PIXELS:
            raise InputError(
                f"video '{name}' has frames of {stream.width} x {stream.height} pixels, at most {MAX_PIXELS:,} are"
                " read: scale it down"
            )
        yield container


def _decoded(container: Any, name: str) -> Iterator[Any]:
    """Yield the frames of a video."""
    try:
        yield from container.decode(video=0)
    except (OSError, ValueError) as error:
        raise InputError(f"video '{name}' is damaged ({said(error)})") from error
