"""What a server doesn't do: more than its queue holds, longer than it may, larger than it may, for whom it isn't."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import serve_fixtures as sf


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sf.make_bundles(tmp_path_factory.mktemp("limits"))


@pytest.fixture(scope="module")
def narrow(made: Path) -> Iterator[sf.Server]:
    limits = ("--queue", 1, "--max-body", "1MiB", "--timeout", 3)
    with sf.serving(made / "pruned", *limits, slow=0.05, LMMPRUNE_SERVE_API_KEY="first second") as running:
        yield running


def test_a_full_queue_says_when_to_come_again(narrow: sf.Server) -> None:
    client = narrow.client(api_key="second")
    narrow_ask = {"Authorization": "Bearer first"}
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.chat.completions.create, **sf.body(max_tokens=20))
        wait(narrow, "lmmprune_running", 1)
        second = pool.submit(client.chat.completions.create, **sf.body(max_tokens=20))
        wait(narrow, "lmmprune_waiting", 1)
        status, headers, said = narrow.ask("/v1/chat/completions", sf.body(), **narrow_ask)
        assert (status, json.loads(said)["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(headers["retry-after"]) <= 120
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**sf.body())
        # The client comes again by itself, and is answered then.
        third = client.with_options(max_retries=5).chat.completions.create(**sf.body(max_tokens=1))
        answers = [first.result(), second.result(), third]
    assert [answer.usage.completion_tokens for answer in answers if answer.usage] == [20, 20, 1]


def wait(server: sf.Server, name: str, value: float) -> None:
    server.wait_for(name, value, Authorization="Bearer first")


def test_what_takes_too_long_ends(narrow: sf.Server) -> None:
    client = narrow.client(api_key="first")
    with pytest.raises(openai.InternalServerError, match="longer than this server allows") as caught:
        client.chat.completions.create(**sf.body(max_tokens=90))
    assert caught.value.status_code == 504
    # A stream has begun with 200: the error is its last event.
    stream = client.chat.completions.create(**sf.body(max_tokens=90, stream=True))
    pieces = []
    with pytest.raises(openai.APIError, match="longer than this server allows"):
        pieces += list(stream)
    assert client.chat.completions.create(**sf.body(max_tokens=1)).usage


def test_a_body_that_never_comes_ends(narrow: sf.Server) -> None:
    host, port = narrow.url.removeprefix("http://").split(":")
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Type: application/json"]
    lines += ["Authorization: Bearer first", "Content-Length: 100", "", "{"]
    with socket.create_connection((host, int(port)), timeout=sf.STARTED) as connection:
        connection.sendall("\r\n".join(lines).encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 408")


def test_what_turns_out_not_to_be_http_is_answered_once(made: Path) -> None:
    with sf.serving(made / "pruned") as server:
        host, port = server.url.removeprefix("http://").split(":")
        for first in ("GET /health", "POST /v1/chat/completions", "POST /nowhere"):
            head = f"{first} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            for pieces in ([head + "no chunk\r\n\r\n"], [head, "no chunk\r\n\r\n"]):
                said = b""
                with socket.create_connection((host, int(port)), timeout=sf.STARTED) as connection:
                    for piece in pieces:
                        connection.sendall(piece.encode())
                        if len(pieces) == 2:
                            server.ask("/health")  # the first piece has been read
                    while more := connection.recv(4096):
                        said += more
                assert said.count(b"HTTP/1.1 ") == 1, said
                assert said.startswith((b"HTTP/1.1 400", b"HTTP/1.1 200", b"HTTP/1.1 404", b"HTTP/1.1 415")), said
        assert server.ask("/v1/chat/completions", sf.body())[0] == 200
        assert server.end() == 0
    assert not [line for line in server.lines if "Traceback" in line or line.startswith("error: ")]


def test_a_key_is_asked_for(narrow: sf.Server) -> None:
    for key in ("", "third", "firstx", "first second"):
        with pytest.raises(openai.AuthenticationError, match="expected 'Authorization: Bearer KEY'"):
            narrow.client(api_key=key or "none").models.list()
    status, headers, said = narrow.ask("/metrics", Authorization="Basic first")
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert json.loads(said)["error"]["code"] == "invalid_api_key"
    assert narrow.client(api_key="second").models.list().data[0].id == "pruned"
    assert [narrow.ask(path)[0] for path in ("/health", "/health/ready")] == [200, 200]


@pytest.mark.parametrize("size", [2**20 + 1, 3 * 2**20, 2**25])
def test_a_body_that_is_too_large_is_refused(narrow: sf.Server, size: int) -> None:
    sent = json.dumps(sf.body("x" * size)).encode()
    try:
        status, error = narrow.refusal(sent, Authorization="Bearer first")
        assert (status, error["code"]) == (413, "request_too_large")
    except OSError:
        # Whoever goes on to send what nobody reads may find the line cut before the answer.
        assert size > 4 * 2**20
    assert narrow.ask("/health")[0] == 200


def test_the_server_ends_after_what_is_under_way(made: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with sf.serving(made / "pruned", slow=0.05) as server, ThreadPoolExecutor(2) as pool:
            client = server.client()
            runs = pool.submit(client.chat.completions.create, **sf.body(max_tokens=30))
            server.wait_for("lmmprune_running", 1)
            waits = pool.submit(client.chat.completions.create, **sf.body(max_tokens=2))
            server.wait_for("lmmprune_waiting", 1)
            assert server.end(number) == 0
            assert [done.result().choices[0].finish_reason for done in (runs, waits)] == ["length"] * 2
            with pytest.raises(openai.APIConnectionError):
                client.models.list()
        assert not [line for line in server.lines if "Traceback" in line]


def test_the_grace_ends(made: Path) -> None:
    with sf.serving(made / "pruned", "--grace", 1, slow=0.1) as server:
        failed: list[Exception] = []

        def ask() -> None:
            try:
                server.client().chat.completions.create(**sf.body(max_tokens=90))
            except openai.APIError as error:
                failed.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        server.wait_for("lmmprune_running", 1)
        begun = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - begun < 9, "the answer alone takes so long"
        asking.join()
        assert failed


def test_the_metrics_count(made: Path) -> None:
    with sf.serving(made / "pruned", f"all={made / 'base'}") as server:
        client = server.client()
        for _ in range(2):
            client.chat.completions.create(**sf.body(max_tokens=3))
        client.chat.completions.create(**sf.body(model="all", max_tokens=3))
        server.refusal(sf.body(best_of=2))
        counted = {'{model="pruned"}': (4.0, 16.0, 3.0, 2), '{model="all"}': (16.0, 16.0, 3.0, 1)}
        for label, (kept, before, new, answers) in counted.items():
            assert server.metric(f"lmmprune_image_tokens_total{label}") == kept * answers
            assert server.metric(f"lmmprune_original_image_tokens_total{label}") == before * answers
            assert server.metric(f"lmmprune_new_tokens_total{label}") == new * answers
            assert server.metric(f"lmmprune_ttft_seconds_count{label}") == answers
            assert server.metric(f"lmmprune_waiting{label}") == 0
        assert server.metric('lmmprune_errors_total{type="invalid_request_error"}') == 1
        path = 'lmmprune_requests_total{path="/v1/chat/completions",status='
        assert (server.metric(path + '"200"}'), server.metric(path + '"400"}')) == (3, 1)


def test_several_answers_grow_at_the_same_time(made: Path) -> None:
    with sf.serving(made / "pruned", "--max-concurrency", 2, slow=0.05) as server, ThreadPoolExecutor(2) as pool:
        alone = server.client().chat.completions.create(**sf.body(max_tokens=20)).choices[0]
        asked = [pool.submit(server.client().chat.completions.create, **sf.body(max_tokens=20)) for _ in range(2)]
        server.wait_for("lmmprune_running", 2)
        assert [one.result().choices[0].message.content for one in asked] == [alone.message.content] * 2
