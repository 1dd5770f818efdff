"""The application: routes, keys, and errors in one form."""

from __future__ import annotations

import hmac
import sys
from collections.abc import Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lmmprune.compiler.serve.access_log import AccessLog, notes_of
from lmmprune.compiler.serve.chat import Chat
from lmmprune.compiler.serve.errors import ApiError, as_api_error
from lmmprune.compiler.serve.metrics import Metrics
from lmmprune.compiler.serve.options import ServeOptions
from lmmprune.compiler.serve.page import PAGE, page_routes
from lmmprune.compiler.serve.served import Served, find
from lmmprune.errors import InputError, LmmpruneError, one_line

_OPEN = ("/health", "/health/ready", *PAGE)
"""What needs no key: it says nothing of anybody."""


class _Keys:
    """Lets requests through that bear one of the keys."""

    def __init__(self, app: ASGIApp, *, keys: tuple[str, ...]) -> None:
        self._app, self._keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys and scope["path"] not in _OPEN:
            headers = dict(scope["headers"])
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            # All are compared, so that the time says nothing of which one is near.
            known = [hmac.compare_digest(given.strip(), key) for key in self._keys]
            if scheme.lower() != b"bearer" or not any(known):
                error = ApiError(
                    "no key, or not one of this server's: expected 'Authorization: Bearer KEY'",
                    status=401,
                    kind="authentication_error",
                    code="invalid_api_key",
                )
                notes_of(scope)["error"] = error.kind
                await JSONResponse(error.body(), error.status, error.headers())(scope, receive, send)
                return
        await self._app(scope, receive, send)


def make_app(served: Mapping[str, Served], options: ServeOptions) -> Starlette:
    """Return the application.

    Args:
        served: The bundles by name.
        options: Limits.
    """
    metrics = Metrics(served)
    chat = Chat(served, options, metrics)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [one.describe() for one in served.values()]})

    async def model(request: Request) -> Response:
        return JSONResponse(find(served, request.path_params["name"]).describe())

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        dead = [name for name, one in served.items() if not one.desk.alive]
        return JSONResponse({"status": "not ready" if dead else "ready", "dead": dead}, 503 if dead else 200)

    async def read_metrics(request: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def failed(request: Request, error: Exception) -> Response:
        told = _from_http(error) if isinstance(error, HTTPException) else as_api_error(error)
        if not isinstance(error, ApiError | InputError | HTTPException):
            print(f"error: {one_line(str(error))}", file=sys.stderr, flush=True)
        metrics.error(told.kind)
        notes_of(request.scope)["error"] = told.kind
        return JSONResponse(told.body(), told.status, told.headers())

    routes = [
        Route("/v1/chat/completions", chat.completions, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/health", health),
        Route("/health/ready", ready),
        Route("/metrics", read_metrics),
        Route("/lmmprune/show", chat.show, methods=["POST"]),
        *page_routes(),
    ]
    log: dict[str, Any] = {
        "metrics": metrics,
        "paths": {route.path for route in routes},
        "written": options.access_log,
    }
    return Starlette(
        routes=routes,
        middleware=[Middleware(AccessLog, **log), Middleware(_Keys, keys=options.api_keys)],
        exception_handlers={HTTPException: failed, LmmpruneError: failed, Exception: failed},
    )


def _from_http(error: HTTPException) -> ApiError:
    known = {404: "there is nothing here: see /v1/chat/completions and /v1/models", 405: "the method isn't allowed"}
    return ApiError(known.get(error.status_code, error.detail), status=error.status_code)
