"""A stream says piece by piece what a whole answer says; a client that leaves ends its answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import serve_fixtures as sf

TOKENS = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sf.make_bundles(tmp_path_factory.mktemp("stream"))


@pytest.fixture(scope="module")
def server(made: Path) -> Iterator[sf.Server]:
    with sf.serving(made / "pruned") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: sf.Server) -> openai.OpenAI:
    return server.client()


def events(said: bytes) -> list[Any]:
    """Return the events of a stream, whose last one is the end."""
    *rest, end, nothing = said.decode().split("\n\n")
    assert (end, nothing) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in rest]


def test_pieces_together_are_the_whole_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "pruned", "messages": [sf.user("hi?")], "max_tokens": TOKENS}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content for chunk in chunks[:-2]]
    assert len(pieces) > 5
    assert all(pieces)
    assert "".join(filter(None, pieces)) == whole.choices[0].message.content
    assert [chunk.choices[0].delta.role for chunk in chunks[:-1]] == ["assistant"] + [None] * len(pieces)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons == [None] * len(pieces) + [whole.choices[0].finish_reason]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_comes_only_when_asked_for(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "pruned", "messages": [sf.user("hi?")], "max_tokens": 4}
    assert all(chunk.choices for chunk in client.chat.completions.create(**asked, stream=True))


def test_nothing_of_a_stop_string_is_sent(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "pruned", "messages": [sf.user("hi?")], "max_tokens": TOKENS}
    text = client.chat.completions.create(**asked).choices[0].message.content
    assert text is not None
    chunks = list(client.chat.completions.create(**asked, stream=True, stop=text[6:9]))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text[: text.index(text[6:9])]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_events_are_those_of_the_api(server: sf.Server) -> None:
    status, headers, said = server.ask("/v1/chat/completions", sf.body(stream=True))
    assert status == 200
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    found = events(said)
    assert {event["object"] for event in found} == {"chat.completion.chunk"}
    assert found[-1]["lmmprune"]["ttft_ms"] > 0


@pytest.fixture(scope="module")
def slow(made: Path) -> Iterator[sf.Server]:
    # A token takes its time, so that an answer can't have ended by itself.
    with sf.serving(made / "pruned", slow=0.1) as running:
        yield running


def test_the_first_piece_is_sent_while_the_others_are_made(slow: sf.Server) -> None:
    asked = sf.body(max_tokens=30, stream=True)
    with slow.client().chat.completions.create(**asked) as stream:
        assert next(iter(stream)).choices[0].delta.content
        assert slow.metric("lmmprune_running") == 1


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_ends_its_answer(slow: sf.Server, streamed: bool) -> None:
    made = slow.metric("lmmprune_new_tokens_total")
    with sf.raw(slow, sf.body(max_tokens=90, stream=streamed)) as connection:
        if streamed:
            assert connection.recv(64).startswith(b"HTTP/1.1 200")
        else:
            slow.wait_for("lmmprune_running", 1)
    # The one thread is free for the next one, who needn't wait for the end.
    assert slow.client().chat.completions.create(**sf.body(max_tokens=1)).usage
    assert slow.metric("lmmprune_new_tokens_total") == made + 1, "what was cut off is no answer"


def test_the_log_says_who_left(made: Path) -> None:
    with sf.serving(made / "pruned", slow=0.1) as server:
        with sf.raw(server, sf.body("a secret?", max_tokens=90, stream=True)) as connection:
            assert connection.recv(64).startswith(b"HTTP/1.1 200")
        server.client().chat.completions.create(**sf.body("a secret?", max_tokens=1))
        assert server.end() == 0
    left, answered = server.requests()
    assert (left["status"], answered["status"]) == (499, 200)
    assert (answered["model"], answered["image_tokens"], answered["new_tokens"]) == ("pruned", 4, 1)
    assert "secret" not in "".join(server.lines)
