"""One question of several that are answered at once, with settings of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from lmmprune.compiler.runtime.image_features import ImageFeatures
from lmmprune.compiler.runtime.sampling import GREEDY, Picks
from lmmprune.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What ``Runtime.answer`` takes as arguments, for one row of a batch.

    Attributes:
        image: The picture, or what ``encode_image`` returned for it.
        prompt: The bare question, or a conversation.
        max_new_tokens: Stop after so many tokens.
        stop_at_eos: False goes on to ``max_new_tokens`` (for measuring).
        sampling: How tokens are chosen.
        stop: Texts that end the answer.
    """

    image: Image.Image | ImageFeatures
    prompt: str | Sequence[str]
    max_new_tokens: int = 128
    stop_at_eos: bool = True
    sampling: Picks = GREEDY
    stop: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}: expected 0 or more")
