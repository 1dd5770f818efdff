"""Small videos, encoded here: coloured blocks of which some change from frame to frame."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

FRAMES = 12


def make_clip(
    path: Path, *, frames: int = FRAMES, size: tuple[int, int] = (112, 56), rate: Fraction | int = 6, still: int = 0
) -> Path:
    """Write a video.

    Args:
        path: Its suffix says the container.
        frames: How many.
        size: Width and height in pixels.
        rate: Frames in a second.
        still: Of the seven columns of blocks so many never change.
    """
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (6, 7, 3), np.uint8)
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for _ in range(frames):
            blocks[:, still:] += rng.integers(0, 256, (6, 7 - still, 3), np.uint8) // 4
            picture = Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return path


def make_sound(path: Path) -> Path:
    """Write a file of sound alone."""
    with av.open(path, "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
