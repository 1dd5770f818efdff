"""A model hub of one's own: as much of the protocol as the hub's client speaks to download a checkpoint."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """Files by name, and how the hub behaves.

    ``gated``: files are refused, as to who hasn't accepted a licence; ``private``: nothing is shown; ``hangs_up``: the
    connection ends in the midst of this file; ``token``: one that isn't valid is refused.
    """

    files: Mapping[str, bytes]
    gated: bool = False
    private: bool = False
    hangs_up: str | None = None
    token: str | None = None


@dataclass
class Hub:
    """The running server: its address, its repositories, and the files that were fetched."""

    url: str
    repositories: dict[str, Repository]
    fetched: list[str] = field(default_factory=list)


@contextmanager
def serve(repositories: Mapping[str, Repository]) -> Iterator[Hub]:
    """Run a hub on a free port."""
    hub = Hub(url="", repositories=dict(repositories))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            parts = path.strip("/").split("/")
            name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
            repository = hub.repositories.get(name)
            if (token := self.headers.get("Authorization")) and repository and token != f"Bearer {repository.token}":
                self._send(401, {"error": "Invalid credentials in Authorization header"})
            elif repository is None or repository.private:
                # So the real one hides what is private from who isn't logged in.
                self._send(404 if token else 401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            elif parts[0] == "api":
                self._api(repository, name, parts[4:])
            else:
                self._file(repository, parts[3], "/".join(parts[4:]), body=body)

        def _api(self, repository: Repository, name: str, rest: list[str]) -> None:
            if rest[:1] == ["revision"] and rest[1] not in ("main", "v1", COMMIT):
                self._send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            elif rest[:1] == ["tree"]:
                self._send(
                    200,
                    [
                        {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                        for file, data in repository.files.items()
                    ],
                )
            else:
                files = [{"rfilename": file, "size": len(data)} for file, data in repository.files.items()]
                self._send(200, {"id": name, "sha": COMMIT, "siblings": files})

        def _file(self, repository: Repository, revision: str, file: str, *, body: bool) -> None:
            if repository.gated:
                self._send(403, {"error": "Access to model is restricted"}, {"X-Error-Code": "GatedRepo"})
                return
            data = repository.files[file]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if not body:
                return
            hub.fetched.append(file)
            if repository.hangs_up == file:
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(data)

        def _send(self, status: int, document: object, headers: Mapping[str, str] | None = None) -> None:
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if isinstance(document, dict) and "error" in document:
                self.send_header("X-Error-Message", str(document["error"]))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
