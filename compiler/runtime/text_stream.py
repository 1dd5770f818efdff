"""Text that grows with every token, up to a stop string."""

from __future__ import annotations

from lmmprune.compiler.runtime.prompt import Prompter
from lmmprune.compiler.runtime.stop_strings import StopStrings

_INCOMPLETE = "\ufffd"  # what a character decodes to whose last bytes haven't come yet


class TextStream:
    """Text that grows with every token; the pieces together are exactly the decoded whole, up to a stop string.

    Attributes:
        stopped: Whether a stop string came; no token may follow then.
    """

    def __init__(self, prompter: Prompter, stop: StopStrings | None = None) -> None:
        """Start with no tokens."""
        self._prompter, self._stop = prompter, stop or StopStrings()
        self._ids: list[int] = []
        self._printed = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; return the new text that later tokens can't change any more."""
        self._ids.append(token)
        # A run of byte tokens (<0xE2>) is decoded as one: a bad byte at its end spoils the good ones before it.
        unsettled = self._prompter.is_byte(token)
        if unsettled and not self._stop:
            return ""
        # A character may be spread over several tokens: hold it back until it is whole.
        text = self._prompter.decode(self._ids).rstrip(_INCOMPLETE)
        if (cut := self._cut(text)) is not None:
            return cut
        return "" if unsettled else self._advance(text[: len(text) - self._stop.held(text)])

    def finish(self) -> str:
        """Return what was held back."""
        text = self._prompter.decode(self._ids)
        cut = self._cut(text)
        return self._advance(text) if cut is None else cut

    def _cut(self, text: str) -> str | None:
        """Return the rest before a stop string, None if there is none."""
        begin = self._stop.find(text)
        if begin is None:
            return None
        self.stopped = True
        return self._advance(text[:begin])

    def _advance(self, text: str) -> str:
        piece = text[len(self._printed) :]
        self._printed += piece
        return piece
