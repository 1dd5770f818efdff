"""Requests to ``lmmprune serve`` that no client sends: damaged bodies and pictures, absurd numbers, broken HTTP."""

from __future__ import annotations

import base64
import json
import random
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from faults.command_line import LONGEST
from faults.damage import ODD, TEXTS, damaged, damaged_bytes
from faults.tally import SILENT, TRACEBACK, Row, Rows, while_time_lasts

_CHAT = "/v1/chat/completions"
_PATHS = (_CHAT, "/lmmprune/show")
_FIELDS = (
    *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "seed", "stop"),
    *("stream", "stream_options", "n", "user", "metadata", "logit_bias", "tools", "response_format", "x" * 9000, ""),
)
_HEADS = (
    *(
        "Content-Length: -1",
        "Content-Length: 9" + "9" * 400,
        "Content-Length: x",
        "Content-Length: 5\r\nContent-Length: 6",
    ),
    *("Transfer-Encoding: chunked\r\n\r\nzz", "Transfer-Encoding: chunked\r\n\r\n5\r\n{}", "Expect: 100-continue"),
    *("Content-Type: \xff", "A: " + "b" * 100_000, "A\0: b", "Host", "Content-Encoding: gzip", "Connection: upgrade"),
)

Sent = tuple[int, bytes, bool]
"""Status, body, whether any other status than one of refusals would be wrong."""


def run(seconds: float, seed: int) -> list[Row]:
    """Ask one server one wrong thing after the other; at the end it still answers, and its log holds no traceback."""
    import serve_fixtures as sf

    rng, rows = random.Random(seed), Rows("requests")
    kinds: dict[str, Callable[[Any, random.Random], Sent]] = {
        "a field": _field,
        "a body": _body,
        "a picture": _picture,
        "a path": _path,
        "HTTP itself": _http,
    }
    with tempfile.TemporaryDirectory() as folder:
        sf.make_bundles(Path(folder))
        with sf.serving(Path(folder) / "pruned", "--max-tokens", 4, "--max-body", "1MiB", "--timeout", 20) as server:
            for number in while_time_lasts(seconds, at_least=8 * len(kinds)):
                kind = [*kinds][number % len(kinds)]
                state = rng.getrandbits(64)
                status, said, must_refuse = kinds[kind](server, random.Random(state))
                fault = _fault(status, said, must_refuse=must_refuse)
                rows[kind].count(fault, f"number {number} of this seed: {status} {said[:200]!r}")
            right = server.ask(_CHAT, sf.body(max_tokens=2))[0] == 200
            ended = server.end()
        traces = [line for line in server.lines if "Traceback" in line or line.startswith("error: ")]
        well = right and ended == 0 and not traces
        rows["the server afterwards"].count(None if well else TRACEBACK, f"{right}, {ended}, {traces[:3]}")
    return rows.list()


def _fault(status: int, said: bytes, *, must_refuse: bool) -> str | None:
    if status >= 500:
        return TRACEBACK
    if status < 400:
        # A stream that has begun says what went wrong as an event.
        return SILENT if must_refuse and b'{"error"' not in said else None
    if status == 0 or (status == 400 and b"Invalid HTTP request received." in said):  # it wasn't HTTP
        return None
    try:
        error = json.loads(said)["error"]
        words = error["message"]
        plain = len(words) <= LONGEST and words.isprintable() and {*error} == {"message", "type", "param", "code"}
    except (ValueError, KeyError, TypeError):
        plain = False
    return None if plain else TRACEBACK


def _ask(server: Any, path: str, body: Any, **headers: str) -> tuple[int, bytes]:
    try:
        status, _, said = server.ask(path, body, **headers)
    except OSError:  # the line was cut: for a body that is too large, before all of it was read
        return 0, b""
    return status, said


def _field(server: Any, rng: random.Random) -> Sent:
    import serve_fixtures as sf

    body = sf.body(stream=rng.random() < 0.3)
    if rng.random() < 0.5:
        other, _ = damaged({"body": body}, rng)
        body = other.get("body")
    else:
        body[rng.choice(_FIELDS)] = rng.choice((*ODD, 1e400, 10**400, float("nan"), {"a": "x" * 10**5}, ["x"] * 1000))
    return *_ask(server, rng.choice(_PATHS), json.dumps(body).encode()), False


def _body(server: Any, rng: random.Random) -> Sent:
    import serve_fixtures as sf

    whole = json.dumps(sf.body()).encode()
    kind = rng.choice(("text", "bytes", "deep", "digits", "large"))
    if kind == "text":
        sent = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    elif kind == "bytes":
        return *_ask(server, rng.choice(_PATHS), damaged_bytes(whole, rng)[0]), False
    elif kind == "deep":
        inner = rng.choice((b"[", b'{"a":')) * rng.choice((70, 2000, 90_000))
        return *_ask(server, _CHAT, whole[:-1] + b', "metadata": ' + inner), True
    elif kind == "digits":
        name = rng.choice((b"seed", b"max_tokens", b"top_k", b"temperature"))
        number = rng.choice((b"", b"-")) + b"9" * rng.choice((20, 400, 5000, 100_000))
        return *_ask(server, _CHAT, whole[:-1] + b', "' + name + b'": ' + number + b"}"), False
    else:
        sent = b'{"model": "' + b"x" * rng.choice((2**20, 3 * 2**20)) + b'"}'
    return *_ask(server, rng.choice(_PATHS), sent), True


def _picture(server: Any, rng: random.Random) -> Sent:
    import serve_fixtures as sf

    if rng.random() < 0.5:
        png = base64.b64decode(sf.data_url(sf.PICTURE).partition(",")[2])
        url = sf.data_url(damaged_bytes(png, rng)[0])
        must_refuse = False
    else:
        url = rng.choice(
            (
                *(
                    "data:",
                    "data:image/png;base64,",
                    "data:image/png,x",
                    "data:image/png;base64,ä",
                    "DATA:image/png;base64",
                ),
                *(
                    "file:///etc/passwd",
                    "file://\0",
                    "https://[",
                    "https://localhost/x",
                    "http://x/y",
                    "ftp://x",
                    "//x",
                ),
                *("https://" + "a" * 5000, "https://a:99999999/", "x" * 300, "", "file:///dev/zero", "https://\u202e/"),
            )
        )
        must_refuse = True
    body = {"model": "pruned", "messages": [sf.user("hi?", url)], "max_tokens": 2}
    return *_ask(server, rng.choice(_PATHS), body), must_refuse


def _path(server: Any, rng: random.Random) -> Sent:
    name = rng.choice(("", "..", "../../etc/passwd", "%00", "\ud7ff", "x" * 9000, "a/b", "%", "pruned/", "\x1b[31m"))
    path = rng.choice(("/v1/models/", "/", "/v1/", "/v1/chat/completions/", "/lmmprune/")) + quote(name, safe="%/")
    headers = {
        "X_Odd": "\xff" * rng.choice((1, 900)),
        "Content_Type": rng.choice(("", "text/plain", "application/json;x")),
    }
    return *_ask(server, path, rng.choice((None, b"", b"{}")), **headers), False


def _http(server: Any, rng: random.Random) -> Sent:
    import serve_fixtures as sf

    host, port = server.url.removeprefix("http://").split(":")
    first = rng.choice(
        (f"POST {_CHAT} HTTP/1.1", "GET / HTTP/9.9", "\0\0", f"{'A' * 900} / HTTP/1.1", "GET  /", "PRI * HTTP/2.0")
    )
    head = f"{first}\r\nHost: x\r\nContent-Type: application/json\r\n{rng.choice(_HEADS)}\r\n\r\n"
    said = b""
    try:
        with socket.create_connection((host, int(port)), timeout=sf.STARTED) as connection:
            connection.sendall(head.encode("latin-1") + rng.choice((b"", b"{", b"{}")))
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                said += piece
    except OSError:
        return 0, b"", False
    status, _, body = said.partition(b"\r\n\r\n")
    words = status.split(b" ")
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0, body, False
