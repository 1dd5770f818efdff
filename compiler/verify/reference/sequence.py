"""The tokens of a prompt and what was generated after it, with their position numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lmmprune.compiler.verify.reference.cut import CutRefused

# With M-RoPE the numbers of frame, row and column.
Position = int | tuple[int, int, int]


@dataclass(frozen=True)
class Token:
    """One token of the sequence."""

    kind: str  # 'prefix', 'image', 'tail', 'generated'
    index: int  # within its kind, in the sequence that entered the decoder
    position: Position  # its number in the layer at hand
    id: int = -1  # vocabulary id, -1 for an image token


def sequence(
    image: int,
    kept: np.ndarray | None,
    prefix: list[int],
    tail: list[int],
    generated: list[int],
    policy: str,
    patches: int,
) -> list[Token]:
    """Return the numbered sequence that enters the decoder.

    Args:
        image: Visual tokens.
        kept: [image], the original patch of each; None: every patch in order.
        prefix: Ids before the image.
        tail: Ids behind it.
        generated: Ids that follow.
        policy: 'contiguous' or 'original'.
        patches: N.

    Raises:
        CutRefused: There are not so many features, or a patch is not of the picture.
    """
    if kept is not None and len(kept) != image:
        raise CutRefused(f"{image} features, {len(kept)} places")
    if policy == "contiguous":
        numbers, room = list(range(image)), image
    else:
        numbers, room = list(range(image)) if kept is None else [int(patch) for patch in kept], patches
        if max(numbers) >= patches or (kept is None and image != patches):
            raise CutRefused(f"{image} features, the last one's place is {max(numbers)}, {patches} patches")
        # One that is no patch has the first image place's.
        numbers = [max(number, 0) for number in numbers]
    start = len(prefix)
    tokens = [Token("prefix", i, i, word) for i, word in enumerate(prefix)]
    tokens += [Token("image", i, start + number) for i, number in enumerate(numbers)]
    start += room
    tokens += [Token("tail", i, start + i, word) for i, word in enumerate(tail)]
    start += len(tail)
    tokens += [Token("generated", i, start + i, word) for i, word in enumerate(generated)]
    return tokens


def places(
    image: int,
    kept: np.ndarray | None,
    prefix: list[int],
    tail: list[int],
    generated: list[int],
    grid: tuple[int, int],
) -> list[Token]:
    """Return the sequence that enters a decoder with M-RoPE: visual tokens stand at their row and column.

    Args:
        image: Visual tokens.
        kept: [image], the place in the grid of each; None: every place in order.
        prefix: Ids before the image.
        tail: Ids behind it.
        generated: Ids that follow.
        grid: Rows and columns of the whole picture.

    Raises:
        CutRefused: There are not so many features, or a place is not of the picture.
    """
    rows, columns = grid
    spots = list(range(image)) if kept is None else [int(place) for place in kept]
    if len(spots) != image or max(spots) >= rows * columns:
        raise CutRefused(f"{image} features, the last one's place is {max(spots)} of {rows} x {columns}")
    # One that is no patch has the first row and column.
    spots = [max(spot, 0) for spot in spots]
    start = len(prefix)
    tokens = [Token("prefix", i, (i, i, i), word) for i, word in enumerate(prefix)]
    tokens += [Token("image", i, (start, start + s // columns, start + s % columns)) for i, s in enumerate(spots)]
    # The text goes on behind the largest number that the whole picture would have.
    start += max(rows, columns)
    for kind, words in (("tail", tail), ("generated", generated)):
        tokens += [Token(kind, i, (start + i,) * 3, word) for i, word in enumerate(words)]
        start += len(words)
    return tokens


def renumber(tokens: list[Token]) -> list[Token]:
    """Number from 0 without gaps."""
    return [replace(token, position=place) for place, token in enumerate(tokens)]
