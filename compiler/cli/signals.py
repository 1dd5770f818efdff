"""Ctrl-C and SIGTERM, remembered: what C code makes of them isn't taken for a mistake, and imports aren't cut."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType

_AGAIN, _LONGEST = 0.1, 30.0
"""Seconds after which a signal that came during an import is looked at again, and those that it waits at most."""


@dataclass
class Signals:
    """What came.

    Attributes:
        number: Of the signal that came first; None: none did.
    """

    number: int | None = None
    _asked: int = field(default=0, init=False)
    _since: float = field(default=0.0, init=False)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise as Python does for Ctrl-C; while modules are being imported, later, unless it comes a second time.

        C code that is initialized may end the process, or call it an import that failed, when an exception comes out of
        it: half a module stays.
        """
        again = number == getattr(signal, "SIGALRM", None)
        if not again:
            self.number = self.number or number
            self._asked += 1
            self._since = self._since or time.monotonic()
        may_wait = self._asked < 2 and time.monotonic() - self._since < _LONGEST
        if may_wait and hasattr(signal, "setitimer") and _importing(frame):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
            return
        if self.number == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt


@contextlib.contextmanager
def remembered() -> Iterator[Signals]:
    """Handle both signals while the block runs, where handlers can be set and nobody else has."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        **({signal.SIGALRM: signal.SIG_DFL} if hasattr(signal, "SIGALRM") else {}),
    }
    # One that is ignored, as below `nohup`, stays so.
    ours = {number: old for number, old in before.items() if signal.getsignal(number) is old}
    for number in ours:
        signal.signal(number, signals.handle)
    try:
        yield signals
    finally:
        if signal.SIGALRM in ours:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, old in ours.items():
            signal.signal(number, old)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
