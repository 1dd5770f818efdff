"""A prompt as the decoder takes it: text tokens with a run of placeholders for each picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmmprune.compiler.bundle.interface import View


@dataclass(frozen=True, kw_only=True)
class Clock:
    """When the views of a video are.

    Attributes:
        seconds: Of the middle of each view, from the beginning of the video.
        interval: From one view to the next.
    """

    seconds: tuple[float, ...]
    interval: float


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A tokenized prompt.

    Attributes:
        input_ids: int64 ``[1, n]``; the image token's id stands K_i times at the place of picture i.
        spans: Of each picture the index of its first image token, and how many it has.
        clock: When they are, where they are views of a video.
        views: Of each picture its size or grid, where a bundle has several; else none.
    """

    input_ids: NDArray[np.int64]
    spans: tuple[tuple[int, int], ...]
    clock: Clock | None = None
    views: tuple[View, ...] = ()

    @property
    def length(self) -> int:
        """Number of tokens, n."""
        return int(self.input_ids.shape[1])

    @property
    def image_tokens(self) -> int:
        """Number of image tokens of all pictures."""
        return sum(count for _, count in self.spans)

    @property
    def image_start(self) -> int:
        """Index of the first image token."""
        return self.spans[0][0]

    @property
    def texts(self) -> list[list[int]]:
        """The text before the first picture, between every two, and behind the last; a piece may be empty."""
        ids = self.input_ids[0].tolist()
        begins = [0, *(start + count for start, count in self.spans)]
        ends = [*(start for start, _ in self.spans), len(ids)]
        return [ids[begin:end] for begin, end in zip(begins, ends, strict=True)]


def encoded(
    texts: Sequence[Sequence[int]],
    counts: Sequence[int],
    image_token_id: int,
    views: Sequence[View] = (),
    clock: Clock | None = None,
) -> Encoded:
    """Put pictures between texts.

    Args:
        texts: One more than there are pictures, as ``Encoded.texts``.
        counts: Image tokens of each picture.
        image_token_id: The placeholder.
        clock: When they are, where they are views of a video.
        views: Of each picture its size or grid, where a bundle has several.
    """
    ids, spans = list(texts[0]), []
    for count, text in zip(counts, texts[1:], strict=True):
        spans.append((len(ids), count))
        ids += [image_token_id] * count + list(text)
    return Encoded(input_ids=np.array([ids], np.int64), spans=tuple(spans), views=tuple(views), clock=clock)


def with_image_tokens(prompt: Encoded, count: int) -> Encoded:
    """Return a prompt whose pictures have another number of placeholders each: so many, or those of their own size."""
    counts = [view.image_tokens for view in prompt.views] or [count] * len(prompt.spans)
    return encoded(prompt.texts, counts, _placeholder(prompt), prompt.views, prompt.clock)


def with_one_picture(prompt: Encoded, index: int, prefix: int) -> Encoded:
    """Return what a selection is asked about one picture of a prompt: that picture with the text of all of it.

    Args:
        prompt: The prompt.
        index: Which of its pictures.
        prefix: Tokens of the text before the picture, for which the selection was made.
    """
    if len(prompt.spans) == 1 and prompt.image_start == prefix:
        return prompt
    text = [token for piece in prompt.texts for token in piece]
    return encoded([text[:prefix], text[prefix:]], [prompt.spans[index][1]], _placeholder(prompt))


def _placeholder(prompt: Encoded) -> int:
    return int(prompt.input_ids[0, prompt.image_start])
