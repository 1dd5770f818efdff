"""Where the requests of one bundle wait: a bounded queue, and threads that answer them one by one, or some at once."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from lmmprune.compiler.serve.errors import ApiError, as_api_error
from lmmprune.errors import LmmpruneError

_LONGEST = 120  # seconds that anybody is asked to wait


class Gone(BaseException):
    """Whoever asked isn't there any more; as with GeneratorExit, nothing failed, and the cache stays good."""


class Failed:
    """The event that ends a job which can't be done."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Job:
    """What one request wants done, and what comes of it.

    Attributes:
        events: What the work posts, for the loop that made the job; a ``Failed`` is the last one where it fails.
        queued_ms: Milliseconds that it waited; 0 until it is begun.
        row: What the desk's ``together`` needs to know of it; None: it is done alone.
    """

    def __init__(self, work: Callable[[Job], None], row: Any = None) -> None:
        """Make a job within a running loop."""
        self.row = row
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.queued_ms = 0.0
        self._work, self._loop = work, asyncio.get_running_loop()
        self._cancelled, self._made = threading.Event(), time.perf_counter()

    def cancel(self) -> None:
        """Let the work end at the next token; nothing happens where it has ended."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._cancelled.is_set()

    def check(self) -> None:
        """Go on only if somebody still waits.

        Raises:
            Gone: Nobody does.
        """
        if self._cancelled.is_set():
            raise Gone

    def post(self, event: Any) -> None:
        """Tell the loop of something, from the thread that works."""
        try:
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop is closed: the server has ended
            self.cancel()

    def begin(self) -> None:
        """Note how long it waited."""
        self.queued_ms = (time.perf_counter() - self._made) * 1e3

    def run(self) -> None:
        """Do the work."""
        self.begin()
        try:
            self.check()
            self._work(self)
        except Gone:
            pass
        except Exception as error:  # noqa: BLE001 - one request fails, the server goes on
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Post what ends it, and print what isn't the client's mistake."""
        if not isinstance(error, LmmpruneError):
            traceback.print_exception(error, file=sys.stderr)
            error = as_api_error(error)
        self.post(Failed(error))


class Desk:
    """A queue and its threads."""

    def __init__(
        self,
        name: str,
        *,
        workers: int,
        room: int,
        at_once: int = 1,
        together: Callable[[list[Job]], None] | None = None,
    ) -> None:
        """Start the threads.

        Args:
            name: For messages.
            workers: Jobs that are done at the same time.
            room: Jobs that may wait.
            at_once: Waiting jobs that one thread takes at most.
            together: Does so many, of those that have a ``row``.
        """
        self._name, self._room = name, room
        self._at_once, self._together = at_once, together
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._idle, self._closed, self._seconds = 0, False, 0.0
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{number}", daemon=True) for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()
        with self._changed:
            # A free desk must not refuse the first ones because its threads have yet to sit down.
            self._changed.wait_for(lambda: self._idle == workers, timeout=10)

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many are being done."""
        return len(self._threads) - self._idle

    @property
    def alive(self) -> bool:
        """Whether jobs are taken and done."""
        return not self._closed and all(thread.is_alive() for thread in self._threads)

    def submit(self, job: Job) -> None:
        """Put a job into the queue.

        Raises:
            ApiError: The queue is full, or the server is ending.
        """
        with self._changed:
            if self._closed:
                raise ApiError("the server is ending", status=503, kind="server_error", retry_after=5)
            if len(self._waiting) - self._idle >= self._room:
                ahead = (len(self._waiting) + 1) * self._seconds / len(self._threads)
                raise ApiError(
                    f"'{self._name}' has {len(self._waiting)} requests waiting already: try again later",
                    status=429,
                    kind="rate_limit_error",
                    code="rate_limit_exceeded",
                    retry_after=min(max(math.ceil(ahead), 1), _LONGEST),
                )
            self._waiting.append(job)
            self._changed.notify()

    def withdraw(self, job: Job) -> None:
        """Cancel a job, and give its place in the queue away."""
        job.cancel()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self, timeout: float) -> None:
        """Take no more jobs, cancel those that are there, and wait for the threads.

        Args:
            timeout: Seconds.
        """
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.cancel()
            self._waiting.clear()
            self._changed.notify_all()
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0))

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._closed)
                self._idle -= 1
                if self._closed:
                    return
                jobs = self._take()
            start = time.perf_counter()
            if len(jobs) > 1 and self._together is not None:
                self._together(jobs)
            else:
                jobs[0].run()
            # Of one job: that is how long the next in the queue waits for it.
            spent = (time.perf_counter() - start) / len(jobs)
            self._seconds = spent if not self._seconds else 0.8 * self._seconds + 0.2 * spent
            del jobs  # with their pictures

    def _take(self) -> list[Job]:
        """Take the first job, and of the others that wait as many as are done with it, in their order."""
        jobs = [self._waiting.popleft()]
        if self._together is None or jobs[0].row is None:
            return jobs
        jobs += [job for job in self._waiting if job.row is not None][: self._at_once - 1]
        for job in jobs[1:]:
            self._waiting.remove(job)
        return jobs
