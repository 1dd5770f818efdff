"""Conversations as the user has them: from Python, through a pipe and at a terminal, with what they say of mistakes."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import runtime_fixtures as fx

import lmmprune
from lmmprune.compiler.bundle.manifest import Prompt
from lmmprune.compiler.runtime.feature_cache import FeatureCache

Cli = Callable[..., tuple[int, str, str]]
PROMPT = Prompt(
    template="USER: <image>\n{prompt} ASSISTANT:",
    image_token="<image>",
    image_token_id=fx.IMAGE,
    eos_token_ids=(fx.EOS,),
    turn=" ASSISTANT: {answer}</s>USER: {prompt}",
    unit="<image>\n",
    inline="<image>",
    bare="USER: {prompt} ASSISTANT:",
    pictured=" ASSISTANT: {answer}</s>USER: <image>\n{prompt}",
)
SETTINGS = {"max_new_tokens": 5}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conversations")
    fx.make_bundle(folder / "pruned", keep=4, prompt=PROMPT, max_positions=300)
    fx.make_bundle(folder / "short", keep=4, prompt=PROMPT, max_positions=70)
    fx.make_bundle(folder / "once", keep=4)
    fx.save_picture(folder / "p.png", 3, 5, 9, 15)
    fx.save_picture(folder / "q.png", 1, 2, 8, 11)
    (folder / "text.png").write_text("no picture")
    return folder


def test_each_question_goes_on(made: Path) -> None:
    with lmmprune.load(made / "pruned") as model:
        talks = [model.conversation(made / "p.png", reuse=reuse) for reuse in (True, False)]
        questions = ("hi?", "what else?", "why?")
        said = [[talk.ask(question, **SETTINGS) for question in questions] for talk in talks]
        for ours, anew in zip(*said, strict=True):
            assert ours.tokens == anew.tokens
            assert anew.stats.reused_tokens == 0
        reused = [answer.stats.reused_tokens for answer in said[0]]
        assert reused[0] == 0
        # Bytes that are no letter aren't what the template makes of the answer: its end may be read again.
        assert all(after >= before.stats.prompt_tokens for after, before in zip(reused[1:], said[0], strict=False))
        assert [answer.stats.vision_ms > 0 for answer in said[0]] == [True, False, False]
        assert talks[0].turns == [(q, a.text) for q, a in zip(questions, said[0], strict=True)]
        assert talks[0].cached_tokens == said[0][2].stats.prompt_tokens + 4
        assert (talks[0].pictures, talks[1].cached_tokens) == (1, 0)
        # What the model's template says of three questions is what it was asked.
        whole = model.runtime.answer(
            model.encode(made / "p.png"), [*(w for turn in talks[0].turns for w in turn)][:-1], **SETTINGS
        )
        assert whole.text == said[0][2].text


def test_an_answer_may_be_left_and_begun_anew(made: Path) -> None:
    with lmmprune.load(made / "pruned") as model:
        talk = model.conversation(made / "p.png")
        pieces = iter(talk.answer("hi?", max_new_tokens=40))
        first = next(pieces)
        pieces.close()  # type: ignore[attr-defined]  # it is a generator
        talk.answer("unread", **SETTINGS)
        assert talk.ask("more?", **SETTINGS).text
        assert [question for question, _ in talk.turns] == ["hi?", "unread", "more?"]
        assert talk.turns[0][1].startswith(first)
        assert len(talk.turns[0][1]) < 40
        talk.reset()
        again = talk.ask("more?", **SETTINGS)
        assert again.stats.reused_tokens >= fx.GRID
        assert again.tokens == model.ask(made / "p.png", "more?", **SETTINGS).tokens
        assert talk.turns == [("more?", again.text)]


def test_mistakes_leave_a_conversation_as_it_was(made: Path) -> None:
    def refused(match: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(lmmprune.InputError, match=match):
            talk.answer(*arguments, **options)

    with lmmprune.load(made / "short") as model:
        talk = model.conversation()
        refused("no picture: a conversation is about one", "hi?")
        talk.ask("hi?", made / "p.png", max_new_tokens=3)
        refused(r"no room for another question behind 1 before it \(the prompt is too long: .* begin anew", "why? " * 5)
        refused("2 pictures, this bundle takes 1 picture per prompt", "and?", made / "q.png")
        refused("'.*text.png' .*picture", "and?", made / "text.png")
        refused("top_p", "and?", top_p=7.0)
        answer = talk.ask("and?", max_new_tokens=200)
        assert answer.stats.reused_tokens
        assert answer.finish_reason == "positions"
        assert [question for question, _ in talk.turns] == ["hi?", "and?"]
        with pytest.raises(lmmprune.InputError, match=r"^the prompt is too long"):
            model.conversation(made / "p.png").ask("why? " * 20)
    with lmmprune.load(made / "once") as model:
        talk = model.conversation(made / "p.png")
        talk.ask("hi?", max_new_tokens=2)
        refused("this bundle takes one question", "and?")


def test_an_answer_that_fails_was_not_given(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lmmprune.load(made / "pruned") as model:
        talk, session = model.conversation(made / "p.png"), model.runtime._session("decoder")
        talk.ask("hi?", **SETTINGS)
        with monkeypatch.context() as patch:
            patch.setattr(session, "run", lambda feeds: (_ for _ in ()).throw(lmmprune.BundleError("broken")))
            with pytest.raises(lmmprune.BundleError, match="broken"):
                talk.ask("and?", **SETTINGS)
            with pytest.raises(lmmprune.BundleError, match="broken"):
                talk.ask("and?", **SETTINGS)
        assert talk.cached_tokens == 0
        answer = talk.ask("why?", **SETTINGS)
        assert [question for question, _ in talk.turns] == ["hi?", "why?"]
        assert answer.stats.reused_tokens == 0


def test_bench_times_a_second_question(cli: Cli, made: Path) -> None:
    arguments = ("--image", made / "p.png", "--prompt", "hi?", "--rounds", 2, "--new-tokens", 3, "--no-memory")
    code, document, _ = cli("bench", made / "pruned", *arguments, "--follow-up", "and?", "--json")
    assert code == 0
    found = json.loads(document)
    (row,) = found["rows"]
    assert found["settings"]["follow_up"] == "and?"
    second = row["follow_up"]
    assert len(second["kept_ms"]) == len(second["anew_ms"]) == 2
    assert fx.GRID < second["reused_tokens"] < second["prompt_tokens"]
    code, out, _ = cli("bench", made / "pruned", *arguments, "--follow-up", "and?")
    assert code == 0
    assert f"{second['reused_tokens']} of {second['prompt_tokens']} tokens read before" in out
    code, _, err = cli("bench", made / "once", *arguments, "--follow-up", "and?")
    assert (code, "this bundle takes one question" in err) == (2, True)


def test_two_readers_of_one_conversation(made: Path) -> None:
    with lmmprune.load(made / "pruned") as model:
        talk = model.conversation(made / "p.png")
        reading = iter(talk.answer("hi?", max_new_tokens=20))
        next(reading)
        with pytest.raises(lmmprune.InputError, match="this answer is being read already"):
            talk.ask("and?")


def test_pictures_that_come_again_are_not_encoded_again(made: Path) -> None:
    features = 4 * 8 * 4 + 4 * 8  # K x C float32, and K places
    with lmmprune.load(made / "pruned", image_cache=2 * features) as model:
        cache = model.runtime.image_cache
        first, other = fx.picture(3, 5, 9, 15), fx.picture(1, 2, 8, 11)
        one = model.encode(first)
        again = model.encode(first.convert("RGBA"))
        assert again.features is one.features
        assert (again.vision_ms, cache.hits, cache.bytes) == (0.0, 1, features)
        assert model.encode(other).features is not one.features
        assert model.ask(made / "p.png", "hi?", **SETTINGS).stats.vision_ms == 0
        model.encode(fx.picture(7))  # the other one was asked for longest ago
        assert (cache.hits, cache.bytes) == (2, 2 * features)
        assert model.encode(first).vision_ms == 0
        assert model.encode(other).vision_ms > 0
    assert cache.bytes == 0
    with lmmprune.load(made / "pruned") as model:
        assert model.encode(first).features is not model.encode(first).features
        small = FeatureCache(model.manifest, features - 1)
        kept = small.encode([first], lambda images: [model.encode(images[0])])
        assert (small.bytes, small.encode([first], lambda images: kept)) == (0, kept)


def piped(cli: Cli, monkeypatch: pytest.MonkeyPatch, lines: str | bytes, *arguments: object) -> tuple[int, str, str]:
    data = lines.encode() if isinstance(lines, str) else lines
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return cli("chat", *arguments, "--max-new-tokens", 5)


def test_questions_through_a_pipe(cli: Cli, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "hi?\n\nwhat else?\n/reset\nhi?\n/stats\n/new q.png\n hi?\n"
    monkeypatch.chdir(made)
    code, out, err = piped(cli, monkeypatch, lines, made / "pruned", "--image", made / "p.png")
    assert code == 0
    with lmmprune.load(made / "pruned") as model:
        talk = model.conversation(made / "p.png")
        wanted = [talk.ask("hi?", **SETTINGS).text, talk.ask("what else?", **SETTINGS).text]
        wanted += [wanted[0], model.ask(made / "q.png", " hi?", **SETTINGS).text]
    assert out == "".join(f"{text}\n" for text in wanted)
    assert err.count("\n") == 1, "statistics of the last one"
    assert err.startswith("preprocess ")
    code, out, err = piped(cli, monkeypatch, lines, made / "pruned", "--image", made / "p.png", "--json", "-q")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["answer"] for row in rows] == wanted
    assert [row["question"] for row in rows] == ["hi?", "what else?", "hi?", " hi?"]
    assert [row["stats"]["reused_tokens"] > 0 for row in rows] == [False, True, True, False]
    assert rows[0]["kept_indices"] == [3, 5, 9, 15]
    code, out, err = piped(cli, monkeypatch, lines, made / "pruned", "--image", made / "p.png", "--json", "--no-reuse")
    anew = [json.loads(line) for line in out.splitlines()]
    assert [row["tokens"] for row in anew] == [row["tokens"] for row in rows]
    assert not any(row["stats"]["reused_tokens"] for row in anew)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("/imge p.png\n", "no command '/imge'; did you mean '/image'?"),
        ("/reset all\n", "/reset takes nothing, found '/reset all'"),
        ("/new\n", "/new takes names of files, found '/new'"),
        ("/new 'p.png\n", "No closing quotation, expected a command and names of files"),
        ("/new nowhere.png\n", "nowhere.png"),
        ("/image q.png\n", "no room for 1 picture beside 1: this bundle takes 1 picture per prompt; /new FILE begins"),
        ("why? " * 80 + "\n", "the prompt is too long"),
        (b"\xff?\n", "half a character"),
    ],
)
def test_a_mistake_in_a_pipe_ends_it(
    lines: str | bytes, said: str, cli: Cli, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    good = b"hi?\n" + (lines.encode() if isinstance(lines, str) else lines)
    code, out, err = piped(cli, monkeypatch, good, made / "pruned", "--image", made / "p.png")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("lmmprune: error: ")
    assert said in err
    assert out.count("\n") == 1, "what was answered before stays"


def test_mistakes_before_the_first_question(refusal: Callable[..., str], made: Path) -> None:
    pictures = ["--image", made / "p.png", "--image", made / "q.png"]
    assert "2 pictures, this bundle takes 1 picture per prompt" in refusal("chat", made / "pruned", *pictures)
    assert "'--prefill-chunk': 0 is not in the range" in refusal("chat", made / "pruned", "--prefill-chunk", 0)


def test_a_terminal_goes_on_after_mistakes(made: Path) -> None:
    out, err, code = typed(
        [made / "pruned", "--max-new-tokens", 5], ["hi?", "/image p.png", "hi?", "/bad", "/help", "again?"], made
    )
    with lmmprune.load(made / "pruned") as model:
        talk = model.conversation(made / "p.png")
        wanted = [talk.ask(question, **SETTINGS).text for question in ("hi?", "again?")]
    assert code == 0
    for text in wanted:
        assert text in out
    assert "/reset          forget what was said" in out
    assert "error: no picture" in err
    assert "error: no command '/bad'" in err
    assert "ask about a picture that /image FILE brings; /help says what else" in err


def typed(arguments: Sequence[object], lines: Sequence[str], folder: Path) -> tuple[str, str, int]:
    """Type lines and Ctrl-D at a terminal; return what is printed on stdout and on stderr, and the exit code."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "lmmprune.compiler.cli", "chat", *map(str, arguments)],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    os.close(theirs)
    try:
        os.write(ours, "".join(f"{line}\n" for line in lines).encode() + b"\x04")
        out, err = process.communicate(timeout=120)
    finally:
        os.close(ours)
    return out.decode(), err.decode(), process.returncode


def test_the_prompt_of_a_conversation_may_have_pictures_later(made: Path) -> None:
    with lmmprune.load(made / "pruned") as model:
        prompter = model.runtime.prompter
        prompter._interface = dataclasses.replace(model.manifest, images=3)

        def text(words: Sequence[str], placed: Sequence[int]) -> str:
            ids = prompter.encode(words, image_tokens=[1] * sum(placed), placed=placed).input_ids[0]
            return "".join(
                chr(token) if token < 256 else {fx.BOS: "", fx.EOS: "$", fx.IMAGE: "#"}[token] for token in ids
            )

        words = ["a", "b", "c"]
        assert text(words, [1, 0]) == "USER: #\na ASSISTANT: b$USER: c ASSISTANT:"
        assert text(words, [1, 2]) == "USER: #\na ASSISTANT: b$USER: #\n#\nc ASSISTANT:"
        assert (
            text(["a", "<image>", "is <image> it?"], [2, 1])
            == "USER: #\n#\na ASSISTANT: <image>$USER: is # it? ASSISTANT:"
        )
        with pytest.raises(lmmprune.InputError, match="the prompt has 1 '<image>' for 2 pictures"):
            text(["a", "b", "<image>"], [1, 2])
        prompter._prompt = dataclasses.replace(PROMPT, pictured="")
        with pytest.raises(lmmprune.InputError, match="doesn't say where the pictures of a later question"):
            text(words, [1, 1])
