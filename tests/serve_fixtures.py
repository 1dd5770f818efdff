"""A server as its users start it: a process of its own on loopback, asked by the real client of OpenAI."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import runtime_fixtures as fx
from openai import OpenAI
from PIL import Image

STARTED = 60  # seconds: far more than it takes, so that only a server that hangs runs into it


class Server:
    """A running server.

    Attributes:
        url: Where it listens.
        process: Its process.
        lines: What it wrote on stderr since it was ready.
    """

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url, self.lines = process, url, list[str]()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def client(self, **options: Any) -> OpenAI:
        """Return a client; what it would try again is an error at once."""
        given = {"api_key": "none", "max_retries": 0, "timeout": STARTED, **options}
        return OpenAI(base_url=f"{self.url}/v1", **given)

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Send one request without any client's help: status, headers, body."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json", **{key.replace("_", "-"): value for key, value in headers.items()}}
        request = urllib.request.Request(self.url + path, data, given)
        try:
            with urllib.request.urlopen(request, timeout=STARTED) as response:
                return response.status, dict(response.headers), response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()

    def refusal(self, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        """Send a chat request that is refused: the status, and the error."""
        status, _, said = self.ask("/v1/chat/completions", body, **headers)
        assert status >= 400
        error = json.loads(said)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return status, error

    def end(self, number: int = signal.SIGTERM) -> int:
        """Tell the server to end, and return its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(STARTED)
        self._reader.join(STARTED)
        return code

    def metric(self, name: str, **headers: str) -> float:
        """Return a number of the metrics, by how its line begins."""
        lines = self.ask("/metrics", **headers)[2].decode().splitlines()
        return float(next(line for line in lines if line.startswith(name)).rpartition(" ")[2])

    def wait_for(self, name: str, value: float, **headers: str) -> None:
        """Wait until a number of the metrics is as large."""
        end = time.monotonic() + STARTED
        while (found := self.metric(name, **headers)) < value:
            assert time.monotonic() < end, f"{name} is {found}"
            time.sleep(0.01)

    def requests(self) -> list[dict[str, Any]]:
        """Return the lines of the access log, after the server's end."""
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)


SLOW = """
import sys, time
from lmmprune.compiler.backends.onnxruntime import OrtSession

run = OrtSession.run
OrtSession.run = lambda *given: (time.sleep(float(sys.argv[1])), run(*given))[1]
from lmmprune.compiler.cli import main
main(sys.argv[2:])
"""


@contextlib.contextmanager
def serving(*arguments: object, slow: float = 0, **environment: str) -> Iterator[Server]:
    """Run ``lmmprune serve`` on a free port until the block ends; ``slow``: seconds that each run of a graph takes."""
    program = ["-c", SLOW, str(slow)] if slow else ["-m", "lmmprune"]
    command = [sys.executable, *program, "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        found = re.search(r" at (http://\S+)", said)
        assert found, said + process.stderr.read()
        yield Server(process, found[1])
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def data_url(image: Image.Image | bytes) -> str:
    """Return a picture, or the bytes of its file, as the URL that clients send."""
    if isinstance(image, Image.Image):
        held = io.BytesIO()
        image.save(held, "PNG")
        image = held.getvalue()
    return "data:image/png;base64," + base64.b64encode(image).decode()


PICTURE = fx.picture(3, 5, 9, 15)


def user(text: str, *urls: str) -> dict[str, Any]:
    """Return a message with pictures and a text; without any: one picture."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls or (data_url(PICTURE),)]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def turns(*words: str) -> list[dict[str, Any]]:
    """Return a conversation about a picture."""
    said = [{"role": "assistant" if number % 2 else "user", "content": word} for number, word in enumerate(words)]
    return [user(words[0]), *said[1:]]


def body(text: str = "hi?", model: str = "pruned", **fields: Any) -> dict[str, Any]:
    """Return a chat request."""
    return {"model": model, "messages": [user(text)], "max_tokens": 8, **fields}


def raw(server: Server, sent: dict[str, Any]) -> socket.socket:
    """Send a chat request over a connection of one's own, which is returned."""
    data = json.dumps(sent).encode()
    host, port = server.url.removeprefix("http://").split(":")
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Type: application/json"]
    head = "\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""])
    connection = socket.create_connection((host, int(port)), timeout=STARTED)
    connection.sendall(head.encode() + data)
    return connection


def make_bundles(folder: Path) -> Path:
    """Write two bundles of ``runtime_fixtures``, and return their folder."""
    fx.make_bundle(folder / "base")
    fx.make_bundle(folder / "pruned", keep=4)
    return folder
