"""The server's answers are those of ``run``, and its refusals name what they are about, in OpenAI's form."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import runtime_fixtures as fx
import serve_fixtures as sf

import lmmprune
from lmmprune.compiler.runtime.runtime import Runtime


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sf.make_bundles(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def server(made: Path) -> Iterator[sf.Server]:
    with sf.serving(made / "pruned", f"all={made / 'base'}", "--max-tokens", 40) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: sf.Server) -> openai.OpenAI:
    return server.client()


def test_an_answer_is_that_of_run(client: openai.OpenAI, made: Path) -> None:
    for name, folder in (("pruned", "pruned"), ("all", "base")):
        with lmmprune.load(made / folder) as model:
            expected = model.ask(sf.PICTURE, "hi?", max_new_tokens=40)
        found = client.chat.completions.create(model=name, messages=[sf.user("hi?")])
        choice = found.choices[0]
        assert choice.message.content == expected.text
        assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
        assert (found.model, found.object) == (name, "chat.completion")
        stats = expected.stats
        assert found.usage is not None
        assert found.usage.completion_tokens == stats.new_tokens == 40
        assert found.usage.prompt_tokens == stats.prompt_tokens
        assert found.usage.total_tokens == stats.prompt_tokens + 40
        details = found.usage.prompt_tokens_details
        assert details is not None
        said = details.to_dict()
        assert (said["image_tokens"], said["original_image_tokens"]) == (stats.image_tokens, 16)


def test_options_mean_what_they_mean_in_run(client: openai.OpenAI, made: Path) -> None:
    def ask(**options: Any) -> Any:
        return client.chat.completions.create(model="pruned", messages=[sf.user("hi?")], **options).choices[0]

    with lmmprune.load(made / "pruned") as model:
        plain = model.ask(sf.PICTURE, "hi?", max_new_tokens=20).text
        drawn = model.ask(sf.PICTURE, "hi?", max_new_tokens=20, temperature=2, top_p=0.9, seed=4).text
    assert plain != drawn
    assert ask(max_tokens=20, temperature=0).message.content == plain
    assert ask(max_completion_tokens=20, temperature=0, top_p=1, seed=3).message.content == plain
    assert ask(max_tokens=20, seed=3).message.content == plain
    assert ask(max_tokens=20, temperature=2, top_p=0.9, seed=4).message.content == drawn
    assert ask(max_tokens=20, temperature=2, extra_body={"top_k": 1}).message.content == plain
    stopped = ask(max_tokens=20, stop=["never said", plain[6:8]])
    assert stopped.message.content == plain[: plain.index(plain[6:8])]
    assert stopped.finish_reason == "stop"
    harmless = {"n": 1, "user": "me", "logit_bias": {}, "presence_penalty": 0, "response_format": {"type": "text"}}
    assert ask(max_tokens=20, **harmless).message.content == plain


def test_the_list_of_models_says_what_each_is(client: openai.OpenAI) -> None:
    found = {model.id: model for model in client.models.list()}
    assert list(found) == ["pruned", "all"]
    about = found["pruned"].model_extra["lmmprune"]
    assert (about["method"], about["tokens_before"], about["image_tokens"]) == ("brightest", 16, 4)
    assert found["all"].model_extra["lmmprune"]["method"] is None
    assert client.models.retrieve("all") == found["all"]
    with pytest.raises(openai.NotFoundError, match="known: all, pruned"):
        client.models.retrieve("neither")


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "supported as [] only"),
        ({"n": 2}, "n", "supported as 1 only"),
        ({"n": True}, "n", "supported as 1 only"),
        ({"logprobs": True}, "logprobs", "supported as False only"),
        ({"response_format": {"type": "json_object"}}, "response_format", "only"),
        ({"best_of": 2}, "best_of", "isn't supported"),
        ({"temperature": "1"}, "temperature", "valid number"),
        ({"temperature": -1}, None, "expected 0 (the likeliest token) or more"),
        ({"top_p": 0.5}, None, "nothing is drawn without a temperature"),
        ({"seed": -1, "temperature": 1}, None, "seed is -1"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 41}, "max_tokens", "at most 40"),
        ({"max_completion_tokens": 9}, "max_tokens", "differ"),
        ({"stop": ""}, None, "empty"),
        ({"stop": ["x"] * 17}, "stop", "17 texts"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user", "content": "no picture"}]}, "messages", "0 pictures"),
        ({"messages": [sf.user("two", *[sf.data_url(sf.PICTURE)] * 2)]}, "messages", "2 pictures"),
        ({"messages": [{"role": "system", "content": "x"}, sf.user("x")]}, "messages", "no place for instructions"),
        ({"messages": [sf.user("x"), {"role": "assistant", "content": "x"}]}, "messages", "expected a question"),
        (
            {"messages": [sf.user("x"), {"role": "assistant", "content": "x"}, sf.user("x")]},
            "messages",
            "later message",
        ),
        ({"messages": [sf.user("x"), sf.user("x")]}, "messages", "expected 'assistant'"),
        ({"messages": sf.turns("a", "b", "c")}, None, "this bundle takes one question"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "input should be"),
        ({"messages": [sf.user("x", "data:image/png;base64,!!!")]}, "messages", "base64"),
        ({"messages": [sf.user("x", "data:text/plain;base64,QUFB")]}, "messages", "expected 'data:image/"),
        ({"messages": [sf.user("x", "ftp://host/cat.png")]}, "messages", "expected a data: URL"),
        ({"messages": [sf.user("x", "http://host/cat.png")]}, "messages", "expected a data: URL"),
        ({"messages": [sf.user("x", "https://host/cat.png")]}, "messages", "fetches nothing from that host"),
        ({"messages": [sf.user("x", "file:///etc/hosts")]}, "messages", "reads no files"),
        ({"messages": [sf.user("x", sf.data_url(b"no picture"))]}, "messages", "isn't a PNG"),
        ({"messages": [sf.user("x", sf.data_url(b"%!PS-Adobe-3.0 EPSF-3.0\n"))]}, "messages", "isn't a PNG"),
        ({"messages": [sf.user("x", sf.data_url(fx.png_header(8000, 5000)))]}, "messages", "at most 32,000,000"),
        ({"messages": [sf.user("x", sf.data_url(fx.png_header(40_000, 40_000)))]}, "messages", "more than 32,000,000"),
        ({"messages": [sf.user("x", sf.data_url(fx.png_header(8, 8)))]}, None, "damaged"),
        ({"messages": [sf.user("too long " * 40)]}, None, "the prompt is too long: "),
        ({"messages": [sf.user("word " * 100_000)]}, "messages", "the prompt is too long: 500,000 letters"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(
    server: sf.Server, fields: dict[str, Any], param: str | None, words: str
) -> None:
    for streamed in ({}, {"stream": True}):
        status, error = server.refusal(sf.body(**fields, **streamed))
        assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
        assert words in error["message"]


def test_the_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="'tools' is supported as"):
        client.chat.completions.create(
            model="pruned",
            messages=[sf.user("x")],
            tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
        )
    with pytest.raises(openai.NotFoundError, match="did you mean 'pruned'"):
        client.chat.completions.create(model="prune", messages=[sf.user("x")])


@pytest.mark.parametrize("path", ["/v1/embeddings", "/page", "/", "/v1/chat/completions"])
def test_other_paths_and_methods_are_refused(server: sf.Server, path: str) -> None:
    status, _, said = server.ask(path, None if path.endswith("completions") else {})
    assert status in (404, 405)
    assert json.loads(said)["error"]["type"] == "invalid_request_error"


def test_bodies_that_are_none(server: sf.Server) -> None:
    assert server.refusal(b"{")[1]["code"] == "invalid_json"
    assert server.refusal(b'{"model": "pruned", "messages": [{"role": "user", "content": "\\ud800"}]}')[0] == 400
    assert server.refusal(b"\xff")[0] == 400
    assert server.refusal(b"[" * 100_000)[0] == 400
    assert server.refusal([])[1]["message"].startswith("the body: ")
    # What a page in a browser may post to any server without asking.
    assert server.refusal(sf.body(), Content_Type="text/plain")[0] == 415


def test_the_server_loads_nothing_of_the_export(server: sf.Server) -> None:
    maps = Path(f"/proc/{server.process.pid}/maps")
    if not maps.exists():
        pytest.skip("no /proc on this system: what a process has loaded can't be seen")
    loaded = maps.read_text()
    assert "onnxruntime" in loaded
    assert not [name for name in ("/torch/", "/onnx/", "/scipy/", "/sklearn/") if name in loaded]


def test_curl(server: sf.Server, tmp_path: Path) -> None:
    (tmp_path / "body.json").write_text(json.dumps(sf.body(temperature=0)))
    url = f"{server.url}/v1/chat/completions"
    header = ["-H", "Content-Type: application/json"]
    command = ["curl", "-sS", "--fail-with-body", url, *header, "-d", f"@{tmp_path / 'body.json'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=sf.STARTED)
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 8


def test_two_names_or_a_port_that_is_taken_are_refused(made: Path, server: sf.Server, refusal: Any) -> None:
    assert "both called 'base'" in refusal("serve", made / "base", made / ".." / made.name / "base")
    port = server.url.rpartition(":")[2]
    assert "give another --host or --port" in refusal("serve", made / "base", "--port", port)
    assert "doesn't exist" in refusal("serve", made / "nothing", "--port", 0)


def test_equal_graphs_are_loaded_once(tmp_path: Path) -> None:
    from lmmprune.compiler.serve.options import ServeOptions
    from lmmprune.compiler.serve.served import load_served

    fx.make_bundle(tmp_path / "one", keep=4)
    fx.make_bundle(tmp_path / "same", keep=4, method="other")
    fx.make_bundle(tmp_path / "less", keep=3)
    served = load_served({name: tmp_path / name for name in ("one", "same", "less")}, ServeOptions(), threads=1)
    try:
        sessions = {name: one.runtime._session for name, one in served.items()}
        for component in ("vision", "decoder"):
            assert sessions["one"](component) is sessions["same"](component)
            assert sessions["one"](component) is not sessions["less"](component)
    finally:
        for one in served.values():
            one.close(5)
    with pytest.raises(lmmprune.InputError, match="closed"):
        served["one"].runtime.encode_image(sf.PICTURE)


def test_a_conversation_goes_on(tmp_path: Path) -> None:
    plain = fx.make_bundle(tmp_path / "plain")
    prompt = dataclasses.replace(plain.manifest.prompt, turn=" ASSISTANT: {answer}</s>USER: {prompt}")
    bundle = fx.make_bundle(tmp_path / "talks", keep=4, prompt=prompt)
    runtime = Runtime(bundle)
    expected = {}
    for words in (("hi?", "ho.", "why?"), ("hi?", "hm.", "why?"), ("why?",)):
        expected[words] = runtime.answer(sf.PICTURE, words, 8).text
    assert len(set(expected.values())) == 3
    with sf.serving(tmp_path / "talks", "--conversations", 1) as server:
        cached = []
        for words, text in expected.items():
            found = server.client().chat.completions.create(**sf.body(model="talks", messages=sf.turns(*words)))
            assert found.choices[0].message.content == text
            assert found.usage is not None
            cached.append(found.usage.prompt_tokens_details.cached_tokens)
        # The first question with its picture; the picture and what stands before it.
        first = runtime.prompter.encode("hi?")
        assert cached[0] == 0
        assert sum(first.spans[0]) <= cached[2] < first.length < cached[1]
        other = sf.body(model="talks", messages=[sf.user("why?", sf.data_url(fx.picture(1, 2, 8, 11)))])
        found = server.client().chat.completions.create(**other)
        assert found.usage.prompt_tokens_details.cached_tokens == bundle.manifest.prefix
    runtime.close()
