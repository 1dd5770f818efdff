"""Several pictures per prompt through the commands that ask, and through a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import serve_fixtures as sf
from exports import exported_again

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.data.questions import TINY_LLAVA, load_examples
from lmmprune.compiler.runtime.open_picture import load_image
from lmmprune.compiler.runtime.runtime import Runtime

Cli = Callable[..., tuple[int, str, str]]
QUESTION = "What digit is in the image?"
MARKED = "Is <image> the same as <image>?"


@pytest.fixture(scope="module")
def bundle() -> Path:
    return exported_again(images=2, ratio=0.5)[0]


@pytest.fixture(scope="module")
def unpruned() -> Path:
    return exported_again(images=2)[0]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    names = []
    for number, question in enumerate(load_examples(TINY_LLAVA)[::9][:2]):
        names.append(folder / f"{number}.png")
        question.load().save(names[-1])
    return names


@pytest.fixture(scope="module")
def said(bundle: Path, pictures: list[Path]) -> dict[str, str]:
    """What the run-time says of both pictures."""
    runtime, both = Runtime(Bundle.open(bundle), threads=1), [load_image(path) for path in pictures]
    return {question: runtime.answer(both, question, 8).text for question in (QUESTION, MARKED)}


@pytest.fixture
def questions(pictures: list[Path], said: dict[str, str], tmp_path: Path) -> Path:
    names = [path.name for path in pictures]
    for path in pictures:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    rows = [{"image": names, "prompt": prompt, "answer": answer} for prompt, answer in said.items()]
    rows.append({"image": names[0], "prompt": QUESTION, "answer": "no such answer"})
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "questions.jsonl"


def test_run(bundle: Path, pictures: list[Path], said: dict[str, str], cli: Cli) -> None:
    images = [word for path in pictures for word in ("--image", path)]
    code, out, err = cli("run", bundle, *images, "--prompt", MARKED, "--max-new-tokens", 8, "--stats")
    assert (code, out) == (0, said[MARKED] + "\n"), err
    assert "image tokens 288 -> 144 of 2 pictures" in err


def test_eval(bundle: Path, questions: Path, cli: Cli) -> None:
    code, out, err = cli("eval", bundle, "--data", questions, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["correct"], found["total"]) == (2, 3)


def test_compare(unpruned: Path, bundle: Path, questions: Path, cli: Cli) -> None:
    code, out, err = cli("compare", unpruned, bundle, "--data", questions, "--rounds", 2, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["settings"]["examples"] == 3
    assert {one["prompt"] for one in found["others"][0]["worst"]} == {QUESTION, MARKED}


def test_bench(bundle: Path, pictures: list[Path], cli: Cli) -> None:
    images = [word for path in pictures for word in ("--image", path)]
    asked = ["--prompt", MARKED, "--rounds", 2, "--new-tokens", 2]
    code, out, err = cli("bench", bundle, *images, *asked, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["settings"]["image"] == [str(path) for path in pictures]
    assert found["rows"][0]["memory"]["peak"] > 0


def test_inspect_and_models_say_so(bundle: Path, cli: Cli) -> None:
    assert "144 -> 72 visual tokens of each of 1 to 2 pictures" in cli("inspect", bundle)[1]
    assert "several pictures per prompt" in cli("models", "llava")[1]
    assert "one per prompt: --tiles fixes" in cli("models", "llava_next")[1]


def test_what_looks_at_one_picture_says_so(
    bundle: Path, pictures: list[Path], questions: Path, refusal: Callable[..., str], tmp_path: Path
) -> None:
    images = [word for path in pictures for word in ("--image", path)]
    assert "--explain looks at a prompt of one picture" in refusal(
        "bench", bundle, *images, "--prompt", "?", "--explain"
    )
    asked = ["--model", "tiny-llava", "--data", questions, "-o", tmp_path / "study"]
    assert "a study asks about one picture at a time" in refusal("study", *asked)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"image": [], "prompt": "?", "answer": "1"}\n')
    assert "'image' (a path, or a list of paths)" in refusal("eval", bundle, "--data", broken)


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"image": ["0.png"] * 3, "prompt": "?"}, "3 pictures, this bundle takes 1 to 2 pictures per prompt"),
        ({"image": ["0.png"] * 2, "prompt": "is <image> large?"}, "the prompt has 1 '<image>' for 2 pictures"),
        ({"video": "0.png", "prompt": "?"}, "this bundle answers about pictures: give them, or export with --frames"),
    ],
)
def test_a_line_that_cant_be_asked_is_named_before_any_is(
    row: dict[str, Any], line: str, bundle: Path, unpruned: Path, questions: Path, refusal: Callable[..., str]
) -> None:
    """Whoever evaluates for an hour hears of line 4 before, and no answer is printed by then."""
    with questions.open("a") as data:
        data.write(json.dumps({**row, "answer": "1"}))
    for command in (["run", bundle], ["eval", bundle], ["compare", unpruned, bundle, "--rounds", 2]):
        assert f"error: line 4 of '{questions}': {line}" in refusal(*command, "--data", questions)


def test_a_server_takes_several_image_urls(bundle: Path, pictures: list[Path], said: dict[str, str]) -> None:
    urls = [sf.data_url(path.read_bytes()) for path in pictures]

    def body(text: str, *given: str) -> dict[str, Any]:
        return {"model": bundle.name, "messages": [sf.user(text, *given)], "max_tokens": 8}

    with sf.serving(bundle) as server:
        for question, answer in said.items():
            status, _, raw = server.ask("/v1/chat/completions", body(question, *urls))
            assert status == 200
            assert json.loads(raw)["choices"][0]["message"]["content"] == answer
        status, error = server.refusal(body(QUESTION, *urls, urls[0]))
        assert (status, error["message"]) == (400, "messages: 3 pictures, this bundle takes 1 to 2")
        status, error = server.refusal(body("what is <image>?", *urls))
        assert status == 400
        assert "1 '<image>' for 2 pictures" in error["message"]
        status, _, raw = server.ask("/lmmprune/show", body(QUESTION, *urls))
        assert status == 400
        assert b"a drawing is of one" in raw
