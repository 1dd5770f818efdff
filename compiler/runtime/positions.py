"""Number the tokens of a prompt as its bundle says: one after the other, as among all patches, or by row and column."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.bundle.interface import Interface
from lmmprune.compiler.runtime.encoded import Encoded

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
        counts = [view.tokens_before for view in prompt.views] or [interface.picture_tokens] * len(prompt.spans)
        for (start, count), before, places in zip(prompt.spans, counts, _each(interface, prompt, kept), strict=True):
            positions[start : start + count] = start + gone + places
            gone += before - count
            positions[start + count :] += before - count
    return positions[None]


def _rows_and_columns(interface: Interface, prompt: Encoded, kept: Kept) -> NDArray[np.int64]:
    """Give text one number three times, and a visual token its row and column in its whole picture.

    The text behind a picture goes on after its longer side, whatever was dropped.
    """
    grids = [view.grid for view in prompt.views] or [interface.grid] * len(prompt.spans)
    positions = np.empty((3, prompt.length), np.int64)
    every = _each(interface, prompt, kept)
    number, done = 0, 0
    for (start, count), (rows, columns), places in zip(prompt.spans, grids, every, strict=True):
        positions[:, done:start] = np.arange(number, number + start - done)
        number += start - done
        seen = np.stack([np.zeros_like(places), *np.divmod(places, columns)])
        positions[:, start : start + count] = number + seen
        number, done = number + max(rows, columns), start + count
    positions[:, done:] = np.arange(number, number + prompt.length - done)
    return positions[:, None]


def _each(interface: Interface, prompt: Encoded, kept: Kept) -> list[NDArray[np.int64]]:
    """Return the places of each picture's tokens in that picture; one that is no patch has the first place."""
    counts = [count for _, count in prompt.spans]
    if kept is None:
        return [np.arange(count) for count in counts]
    own = np.where(kept < 0, 0, kept % interface.picture_tokens)
    return np.split(own, np.cumsum(counts)[:-1])
