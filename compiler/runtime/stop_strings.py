"""Texts that end an answer: where the first one begins, and what of a text may still become one."""

from __future__ import annotations

from collections.abc import Sequence

from lmmprune.compiler.runtime.check_text import check_text
from lmmprune.errors import InputError


class StopStrings:
    """Some stop strings; an answer ends as soon as one of them is whole."""

    def __init__(self, stop: str | Sequence[str] = ()) -> None:
        """Take one text, or several.

        Raises:
            InputError: One is empty, or isn't text.
        """
        self._texts = (stop,) if isinstance(stop, str) else tuple(stop)
        for text in self._texts:
            if not isinstance(text, str):
                raise InputError(f"a stop string is {text!r}: expected text")
            if not text:
                raise InputError("a stop string is empty, which would stop every answer at once: leave it out")
            check_text(text, "the stop string")

    def __bool__(self) -> bool:
        """Say whether there is any."""
        return bool(self._texts)

    def find(self, text: str) -> int | None:
        """Return where the stop string begins that is whole first; the longest of those that end together.

        That is the same however the text comes in pieces. None: the text holds none.
        """
        found = [(begin + len(stop), begin) for stop in self._texts if (begin := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def held(self, text: str) -> int:
        """Return how many letters at the end of a text may be the beginning of a stop string."""
        longest = max((len(stop) - 1 for stop in self._texts), default=0)
        for count in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-count:]) for stop in self._texts):
                return count
        return 0
