"""Number the tokens of a prompt as its bundle says: one after the other, as among all patches, or by row and column."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.bundle.interface import Interface
from lmmprune.compiler.bundle.video import Video
from lmmprune.compiler.runtime.encoded import Clock, Encoded

Kept = NDArray[np.int64] | None
"""Places ``[K]`` of the visual tokens of all pictures together: those of picture i begin at i * N, of several sizes the
largest one's N; -1: of no patch."""


def number_tokens(interface: Interface, prompt: Encoded, kept: Kept) -> NDArray[np.int64]:
    """Return int64 ``[1,n]``; with M-RoPE ``[3,1,n]``: frame, row and column.

    Args:
        interface: Of the bundle.
        prompt: The prompt.
        kept: Which patches its image tokens are; None when nothing was dropped.
    """
    if interface.position_rows > 1:
        return _rows_and_columns(interface, prompt, kept)
    positions = np.arange(prompt.length, dtype=np.int64)
    if interface.positions == "original" and kept is not None:
        gone = 0
        counts = [view.tokens_before for view in prompt.views]
        counts = counts or [interface.tokens_of(picture) for picture in range(len(prompt.spans))]
        for (start, count), before, places in zip(prompt.spans, counts, _each(interface, prompt, kept), strict=True):
            positions[start : start + count] = start + gone + places
            gone += before - count
            positions[start + count :] += before - count
    return positions[None]


def _rows_and_columns(interface: Interface, prompt: Encoded, kept: Kept) -> NDArray[np.int64]:
    """Give text one number three times, and a visual token its row and column in its whole picture.

    The text behind a picture goes on after its longer side, whatever was dropped. The views of a video may lie in one
    grid, each with its frame's number; then only the last one's side counts.
    """
    grids = [view.grid for view in prompt.views] or [interface.grid] * len(prompt.spans)
    video = interface.video
    frames = frame_numbers(video, prompt.clock) if video is not None and video.together else None
    positions = np.empty((3, prompt.length), np.int64)
    every = _each(interface, prompt, kept)
    number, done = 0, 0
    for picture, ((start, count), (rows, columns)) in enumerate(zip(prompt.spans, grids, strict=True)):
        places = every[picture]
        positions[:, done:start] = np.arange(number, number + start - done)
        number += start - done
        frame = np.full_like(places, 0 if frames is None else frames[picture])
        positions[:, start : start + count] = number + np.stack([frame, *np.divmod(places, columns)])
        number += max(rows, columns) if frames is None or picture == len(every) - 1 else 0
        done = start + count
    positions[:, done:] = np.arange(number, number + prompt.length - done)
    return positions[:, None]


def _each(interface: Interface, prompt: Encoded, kept: Kept) -> list[NDArray[np.int64]]:
    """Return the places of each picture's tokens in that picture; one that is no patch has the first place."""
    counts = [count for _, count in prompt.spans]
    if kept is None:
        return [np.arange(count) for count in counts]
    before = interface.picture_tokens
    each = np.split(np.where(kept < 0, 0, kept % before), np.cumsum(counts)[:-1])
    if interface.joint and interface.video is not None and interface.video.newline:
        # The newline behind the last view has the place behind that view's own.
        each[-1] = np.where(kept[len(kept) - counts[-1] :] == before * interface.video.views, before, each[-1])
    return each


def frame_numbers(video: Video, clock: Clock | None) -> NDArray[np.int64]:
    """Return the number of each view in time, int64 ``[views]``, in the float32 that the reference computes it in."""
    step = np.float32(1)
    if video.pace is not None:
        step = np.float32(video.pace) * np.float32(1 if clock is None else clock.interval)
    return (np.arange(video.views, dtype=np.float32) * step).astype(np.int64)
