"""Time a second question about the same pictures: on what the decoder has read, and with everything read again."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lmmprune.compiler.measure.report import FollowUp, Spread, paired_speedup
from lmmprune.compiler.runtime.image_features import ImageFeatures
from lmmprune.compiler.runtime.runtime import Runtime


class SecondQuestion:
    """Asks one bundle, round after round."""

    def __init__(self, runtime: Runtime, pictures: Sequence[ImageFeatures], first: str, second: str) -> None:
        """Take a loaded bundle.

        Args:
            runtime: The bundle.
            pictures: Encoded by it.
            first: The first question.
            second: The one that is timed.

        Raises:
            InputError: The bundle takes one question, or can't keep what it has read.
        """
        self._runtime, self._pictures, self._first, self._second = runtime, pictures, first, second
        self._held, self._order = runtime.hold(), random.Random(0)
        self._kept: list[float] = []
        self._anew: list[float] = []
        self._tokens = (0, 0)

    def ask(self, new_tokens: int, *, count: bool = True) -> None:
        """Ask the first question, and the second one both ways.

        Args:
            new_tokens: Of the first answer, which the decoder has read then.
            count: Whether the times count.
        """
        self._held.forget()
        said = self._runtime.answer(self._pictures, self._first, new_tokens, stop_at_eos=False, held=self._held).text
        words = [self._first, said, self._second]
        for kept in self._order.sample((True, False), 2):
            stats = self._runtime.answer(self._pictures, words, 1, held=self._held if kept else None).stats
            if count:
                (self._kept if kept else self._anew).append(stats.prefill_ms)
            if kept:
                self._tokens = stats.prompt_tokens, stats.reused_tokens

    def result(self) -> FollowUp:
        """Return what was measured, of two rounds or more."""
        return FollowUp(
            prompt_tokens=self._tokens[0],
            reused_tokens=self._tokens[1],
            kept_ms=tuple(self._kept),
            anew_ms=tuple(self._anew),
            kept=Spread.of(self._kept),
            anew=Spread.of(self._anew),
            ratio=paired_speedup(self._kept, self._anew),
        )
