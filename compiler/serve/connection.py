"""HTTP/1.1 as uvicorn speaks it, for clients who break off in the middle of what they send."""

from __future__ import annotations

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """Answers what isn't HTTP once; uvicorn (seen in 0.54) answers, and lets the application answer, too.

    A body may turn out to be damaged when its request is being answered already.
    """

    def send_400_response(self, msg: str) -> None:
        """Refuse what came last; nothing more is sent on this line."""
        if self.cycle is not None:
            # As when the line was cut.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # an answer has begun
            self.transport.close()
