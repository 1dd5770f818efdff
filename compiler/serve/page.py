"""The page at ``/``: drop a picture, ask, see what is kept. Everything comes from this server."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
"""Path -> its file and type."""

_HEADERS = {
    # Nothing is loaded from elsewhere, nothing is sent elsewhere, and no other page holds this one.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob:;"
    " connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def page_routes() -> list[Route]:
    """Return the routes of the page."""
    folder = files("lmmprune.compiler.serve") / "static"

    def route(path: str, name: str, kind: str) -> Route:
        content = (folder / name).read_bytes()

        async def send(request: Request) -> Response:
            return Response(content, headers=_HEADERS, media_type=kind)

        return Route(path, send)

    return [route(path, name, kind) for path, (name, kind) in PAGE.items()]
