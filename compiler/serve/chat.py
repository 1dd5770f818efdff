"""``POST /v1/chat/completions``: an answer as a whole, or as a stream of events; and the drawing of what is kept."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from lmmprune.compiler.serve.access_log import notes_of
from lmmprune.compiler.serve.desk import Job
from lmmprune.compiler.serve.errors import ApiError, as_api_error
from lmmprune.compiler.serve.exchange import Exchange, read_body
from lmmprune.compiler.serve.metrics import Metrics
from lmmprune.compiler.serve.options import ServeOptions
from lmmprune.compiler.serve.pictures import read_picture
from lmmprune.compiler.serve.protocol import ChatRequest, read_request
from lmmprune.compiler.serve.question import Question, question_of
from lmmprune.compiler.serve.replies import END, Reply, event
from lmmprune.compiler.serve.served import Served, find
from lmmprune.compiler.serve.together import Row
from lmmprune.compiler.serve.work import Done, Drawn, Piece, answering, drawing

_FETCHING = 8  # pictures at a time: each holds a thread

_STREAM = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Chat:
    """Answers requests."""

    def __init__(self, served: Mapping[str, Served], options: ServeOptions, metrics: Metrics) -> None:
        """Serve bundles.

        Args:
            served: By name.
            options: Of the server.
            metrics: Where answers are counted.
        """
        self._served, self._options, self._metrics = served, options, metrics
        self._fetching = anyio.CapacityLimiter(_FETCHING)

    async def completions(self, request: Request) -> Response:
        """Answer a request.

        Raises:
            LmmpruneError: It is refused, or fails before there is anything to send.
        """
        deadline = time.monotonic() + self._options.timeout
        asked, served, question = await self.read(request, deadline)
        pictures = await self.pictures(question)
        most = self._options.max_pixels
        job = Job(answering(served.runtime, question, pictures, most, served.prefixes), Row(question, pictures, most))
        exchange = Exchange(served.desk, job, request.receive, deadline)
        streamed = False
        try:
            first = await exchange.next()  # whatever can be refused is refused by now, with a status of its own
            if asked.stream:
                streamed = True
                return _Stream(exchange, first, asked, served.name, self._metrics)
            text, step = "", first
            while isinstance(step, Piece):
                text, step = text + step.text, await exchange.next()
            assert isinstance(step, Done)
            self._metrics.answer(served.name, step.stats, job.queued_ms)
            notes_of(request.scope).update(step.notes())
            return JSONResponse(Reply(served.name).whole(text, step.stats, job.queued_ms))
        finally:
            if not streamed:
                exchange.close()

    async def show(self, request: Request) -> Response:
        """Draw which patches the bundle keeps of a request's one picture.

        Raises:
            LmmpruneError: It is refused, or fails.
        """
        deadline = time.monotonic() + self._options.timeout
        _, served, question = await self.read(request, deadline)
        if len(question.urls) > 1:
            said = f"messages: {len(question.urls)} pictures, a drawing is of one: send one"
            raise ApiError(said, param="messages")
        (picture,) = await self.pictures(question)
        job = Job(drawing(served.runtime, question, picture, self._options.max_pixels))
        exchange = Exchange(served.desk, job, request.receive, deadline)
        try:
            drawn = await exchange.next()
        finally:
            exchange.close()
        assert isinstance(drawn, Drawn)
        return Response(drawn.png, media_type="image/png")

    async def read(self, request: Request, deadline: float) -> tuple[ChatRequest, Served, Question]:
        """Read a request and find its bundle.

        Raises:
            LmmpruneError: It is refused.
        """
        asked = read_request(await read_body(request, self._options.max_body, deadline))
        served = find(self._served, asked.model)
        notes_of(request.scope)["model"] = served.name
        question = question_of(asked, self._options.max_tokens, served.manifest.images)
        letters = sum(map(len, question.words))
        if letters > served.longest_text:
            said = f"the prompt is too long: {letters:,} letters, at most {served.longest_text:,} are read"
            raise ApiError(said, param="messages", code="context_length_exceeded")
        return asked, served, question

    async def pictures(self, question: Question) -> list[Callable[[], bytes]]:
        """Return what gives the pictures: bytes in the request wait until it is their turn, others are fetched now.

        Raises:
            ApiError: One can't be fetched.
        """
        found: list[Callable[[], bytes]] = []
        for url in question.urls:
            get = functools.partial(read_picture, url, self._options)
            if url[:5].lower() != "data:":
                data = await anyio.to_thread.run_sync(get, abandon_on_cancel=True, limiter=self._fetching)
                get = functools.partial(bytes, data)  # of bytes, the very same
            found.append(get)
        return found


class _Stream(Response):
    """An answer as server-sent events, each sent when it comes."""

    def __init__(
        self, exchange: Exchange, first: Piece | Done, asked: ChatRequest, model: str, metrics: Metrics
    ) -> None:
        super().__init__(headers=_STREAM)
        del self.headers["content-length"]
        self._exchange, self._step, self._model, self._metrics = exchange, first, model, metrics
        self._with_usage = bool(asked.stream_options and asked.stream_options.include_usage)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            await self._answer(scope, send)
        except Exception as error:  # noqa: BLE001 - the status is sent: an error is an event, and no end follows
            told = as_api_error(error)
            notes_of(scope)["error"] = told.kind
            notes_of(scope)["status"] = told.status
            self._metrics.error(told.kind)
            await _send(send, event(told.body()))
        finally:
            self._exchange.close()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _answer(self, scope: Scope, send: Send) -> None:
        reply, first, step = Reply(self._model), True, self._step
        while isinstance(step, Piece):
            await _send(send, event(reply.piece(step.text, first=first)))
            first, step = False, await self._exchange.next()
        queued_ms = self._exchange.job.queued_ms
        self._metrics.answer(self._model, step.stats, queued_ms)
        notes_of(scope).update(step.notes())
        last = event(reply.last(step.stats, queued_ms, first=first))
        if self._with_usage:
            last += event(reply.used(step.stats))
        await _send(send, last + END)


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
