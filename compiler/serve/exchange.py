"""One request and its job: wait for what comes first, the work, the deadline, or the client's leaving."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from lmmprune.compiler.serve.desk import Desk, Failed, Job
from lmmprune.compiler.serve.errors import ApiError

GONE = 499
"""Status of a request whose client left, for the log: nobody reads the answer."""

_DRAINED = 4  # times the limit: so much of a body that is too large is read, so that its client reads the answer


def client_gone() -> ApiError:
    """Return what ends a request whose client left."""
    return ApiError("the client left", status=GONE)


class Exchange:
    """What a handler holds while a job is done; close it in any case."""

    def __init__(self, desk: Desk, job: Job, receive: Receive, deadline: float) -> None:
        """Put a job into its queue.

        Args:
            desk: Where it is done.
            job: The job.
            receive: The request's, its body read.
            deadline: On the clock of ``time.monotonic``.

        Raises:
            ApiError: The queue is full.
        """
        self.job = job
        self._desk, self._deadline = desk, deadline
        desk.submit(job)
        self._gone = asyncio.ensure_future(_until_gone(receive))

    async def next(self) -> Any:
        """Return the job's next event.

        Raises:
            ApiError: The client left, or the time is up; the job is cancelled.
            LmmpruneError: The job failed.
        """
        event = asyncio.ensure_future(self.job.events.get())
        try:
            left = max(self._deadline - time.monotonic(), 0)
            await asyncio.wait({event, self._gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if self._gone.done():
                raise client_gone()
            if not event.done():
                raise ApiError(
                    "the request took longer than this server allows", status=504, kind="timeout_error", code="timeout"
                )
            found = event.result()
        finally:
            event.cancel()
        if isinstance(found, Failed):
            raise found.error
        return found

    def close(self) -> None:
        """End the job, if it hasn't ended, and stop watching the client."""
        self._gone.cancel()
        self._desk.withdraw(self.job)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(request: Request, limit: int, deadline: float) -> bytes:
    """Return the body of a request.

    Raises:
        ApiError: It isn't JSON by its header, is too large, doesn't come in time, or its client left.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page in a browser can post anything else to any server without being asked whether it may.
        raise ApiError("the header 'Content-Type' isn't application/json", status=415)
    large = ApiError(f"the request has more than {limit:,} bytes", status=413, code="request_too_large")
    claimed = request.headers.get("content-length", "0")
    if int(claimed) > limit and ("expect" in request.headers or int(claimed) > _DRAINED * limit):
        raise large
    data, size = bytearray(), 0
    try:
        with anyio.fail_after(max(deadline - time.monotonic(), 0)):
            async for piece in request.stream():
                size += len(piece)
                if size > _DRAINED * limit:
                    raise large
                if size <= limit:
                    data += piece
    except TimeoutError as error:
        raise ApiError("the request didn't arrive in time", status=408, kind="timeout_error") from error
    except ClientDisconnect as error:
        raise client_gone() from error
    if size > limit:
        raise large
    return bytes(data)
