"""Pictures by URL: only from hosts that are allowed and public, only files below the directory that is allowed."""

from __future__ import annotations

import http.server
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import serve_fixtures as sf

from lmmprune.compiler.serve.errors import ApiError
from lmmprune.compiler.serve.fetch import fetch, is_public
from lmmprune.compiler.serve.options import ServeOptions
from lmmprune.compiler.serve.pictures import read_picture

HOST = "pictures.example"
DATA = b"\x89PNG" + bytes(100)


class Host(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", f"https://{HOST}/cat.png")
            self.end_headers()
        elif self.path == "/drip":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            except OSError:
                pass
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(DATA if self.path == "/cat.png?size=1" else bytes(2000))

    def log_message(self, *given: Any) -> None:
        pass


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., bytes]]:
    """Fetch from a server of our own, whose certificate is checked, as if it were on the internet."""
    folder = tmp_path_factory.mktemp("tls")
    names = ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *files]
    subprocess.run(command, check=True, capture_output=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def call(url: str, **options: Any) -> bytes:
        given = {
            "timeout": 10,
            "limit": 1000,
            "resolve": lambda host: ["127.0.0.1"],
            "public": lambda address: True,
            "context": ssl.create_default_context(cafile=folder / "cert.pem"),
            "port": server.server_port,
        }
        return fetch(url, [HOST], **{**given, **options})

    yield call
    server.shutdown()
    server.server_close()


def test_a_picture_is_fetched(fetched: Callable[..., bytes]) -> None:
    assert fetched(f"https://{HOST}/cat.png?size=1") == DATA
    assert fetched(f"https://{HOST.upper()}:443/cat.png?size=1#part") == DATA


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        (f"https://{HOST}/redirect", {}, "answered 302"),
        (f"https://{HOST}/large", {}, "more than 1,000 bytes"),
        (f"https://{HOST}/drip", {"timeout": 0.5}, "too slow"),
        (f"https://{HOST}/cat.png", {"public": is_public}, "isn't on the public internet"),
        (f"https://{HOST}/cat.png", {"resolve": lambda host: []}, "isn't on the public internet"),
        (f"https://{HOST}/cat.png", {"context": None}, "can't be fetched"),
        (f"https://{HOST}/cat.png", {"port": 9}, "can't be fetched"),
        (f"https://{HOST}:8443/cat.png", {}, "without user and port"),
        (f"https://me@{HOST}/cat.png", {}, "without user and port"),
        (f"https://{HOST}/cat .png", {}, "can't be fetched"),
        (f"https://evil.example/?{HOST}", {}, "fetches nothing from that host"),
        (f"https://x.{HOST}/cat.png", {}, "fetches nothing from that host"),
        (f"https://{HOST}@evil.example/cat.png", {}, "fetches nothing from that host"),
        ("https://[::1/cat.png", {}, "damaged"),
        (f"https://{HOST}:port/cat.png", {}, "damaged"),
    ],
)
def test_what_isnt_allowed_isnt_fetched(
    fetched: Callable[..., bytes], url: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ApiError, match=words):
        fetched(url, **options)


def test_one_private_address_of_a_host_is_enough(fetched: Callable[..., bytes]) -> None:
    with pytest.raises(ApiError, match="public internet"):
        fetched(f"https://{HOST}/", public=is_public, resolve=lambda host: ["93.184.216.34", "10.0.0.1"])


# As text: a list of them would be a line each.
PRIVATE = """
127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 255.255.255.255
::1 :: fe80::1 fe80::1%eth0 fc00::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: 2001:db8::1
"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


def test_files_below_the_directory_alone(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    (inside / "deep").mkdir(parents=True)
    outside.mkdir()
    (inside / "deep" / "a cat.png").write_bytes(DATA)
    (outside / "secret.png").write_bytes(DATA)
    (inside / "link.png").symlink_to(outside / "secret.png")
    (inside / "large.png").write_bytes(bytes(2000))
    os.mkfifo(inside / "pipe.png")
    options = ServeOptions(media_path=inside, max_body=1000)
    assert read_picture((inside / "deep" / "a cat.png").as_uri(), options) == DATA
    assert read_picture(f"file://localhost{inside}/deep/../deep/a%20cat.png", options) == DATA
    refused = [
        (outside / "secret.png").as_uri(),
        (inside / "link.png").as_uri(),
        f"file://{inside}/../out/secret.png",
        f"file://{inside}/%2e%2e/out/secret.png",
        f"file://{inside}/nothing.png",
        f"file://{inside}",
        f"file://{inside}/pipe.png",
        f"file://elsewhere{inside}/deep/a%20cat.png",
        f"file://{inside}/deep/a%20cat.png%00",
        "file:deep/a cat.png",
        "file://[",
    ]
    said = set()
    for url in refused:
        with pytest.raises(ApiError) as caught:
            read_picture(url, options)
        said.add(str(caught.value))
    assert len(said) == 1, "what is wrong isn't said"
    with pytest.raises(ApiError, match="more than 1,000 bytes"):
        read_picture((inside / "large.png").as_uri(), options)


def test_a_server_reads_what_it_may(tmp_path: Path) -> None:
    made = sf.make_bundles(tmp_path)
    sf.PICTURE.save(tmp_path / "p.png")
    allowed = ("--allowed-local-media-path", tmp_path, "--allowed-media-domains", "localhost")
    with sf.serving(made / "pruned", *allowed) as server:
        client, answers = server.client(), []
        for url in (sf.data_url(sf.PICTURE), (tmp_path / "p.png").as_uri()):
            answers.append(client.chat.completions.create(**sf.body(messages=[sf.user("hi?", url)])))
        assert len({answer.choices[0].message.content for answer in answers}) == 1
        status, error = server.refusal(sf.body(messages=[sf.user("hi?", "https://localhost/cat.png")]))
        assert (status, "public internet" in error["message"]) == (400, True)
