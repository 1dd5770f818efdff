"""One line of JSON on stderr per request: what was asked, how it ended, how long it took. Never its contents."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection
from datetime import datetime, timezone
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmmprune.compiler.serve.metrics import Metrics

_NOTES = "lmmprune.notes"


def notes_of(scope: Scope) -> dict[str, Any]:
    """Return what handlers add to a request's line; ``status`` replaces that of the response."""
    found: dict[str, Any] = scope.setdefault(_NOTES, {})
    return found


class AccessLog:
    """Counts each request, and writes its line."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: Collection[str], written: bool) -> None:
        """Stand in front of an application.

        Args:
            app: The application.
            metrics: Where requests are counted.
            paths: Those that are named; whatever else somebody tries is "other".
            written: Whether there are lines at all.
        """
        self._app, self._metrics, self._paths, self._written = app, metrics, paths, written

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, start = 500, time.perf_counter()
        notes = notes_of(scope)

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            line = {
                "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                "client": (scope.get("client") or ("", 0))[0],
                "method": scope["method"],
                "path": path,
                "status": status,
                "ms": round((time.perf_counter() - start) * 1e3, 1),
                **notes,
            }
            self._metrics.request(path, line["status"])
            if self._written:
                print(json.dumps(line), file=sys.stderr, flush=True)
