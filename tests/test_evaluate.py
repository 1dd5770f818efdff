from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import runtime_fixtures as fx

from lmmprune.compiler.data.questions import Question, load_questions
from lmmprune.compiler.measure.evaluate import Accuracy, evaluate, normalized
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.errors import InputError


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    return Runtime(fx.make_bundle(tmp_path_factory.mktemp("evaluate") / "out", keep=4))


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # From the closed form with z = 1.96, as in Brown, Cai and DasGupta, 2001.
    [(5, 10, 0.2366, 0.7634), (0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0), (1900, 2000, 0.9396, 0.9587)],
)
def test_wilson_interval(correct: int, total: int, low: float, high: float) -> None:
    assert Accuracy(correct=correct, total=total).interval == pytest.approx((low, high), abs=1e-4)


def test_normalization() -> None:
    assert normalized(" Seven. ") == normalized("seven") == "seven"
    assert normalized("7.5") == "7.5"
    assert normalized("a b") != normalized("ab")


# said, expected, whether the whole answer is right, whether its first word is; by hand.
SAID = [
    ("seven", ("seven",), True, True),
    (" Seven.", ("seven",), True, True),
    ("seven seven seven", ("seven",), False, True),
    ("seven, top left", ("Seven",), False, True),
    ("seven", ("seven red digits",), False, True),
    ("seventeen", ("seven",), False, False),
    ("the seven", ("seven",), False, False),
    ("", ("seven",), False, False),
    ("no", ("yes", "no way"), False, True),
    ("7.5", ("7",), False, False),
    ("-5", ("5",), False, False),
]


def test_whole_answers_and_first_words() -> None:
    told = iter([said for said, *_ in SAID])
    model = SimpleNamespace(
        encode_image=lambda picture: picture, answer=lambda picture, prompt, limit: SimpleNamespace(text=next(told))
    )
    questions = [
        Question(picture="a", load=fx.picture, prompt="x", answers=answers, kind="right" if whole else "wrong")
        for _, answers, whole, _ in SAID
    ]
    result = evaluate(model, questions)  # type: ignore[arg-type]  # what evaluate takes of a run-time
    assert [(one.correct, one.first_word) for one in result.predictions] == [
        (whole, first) for *_, whole, first in SAID
    ]
    assert (result.overall, result.first_word) == (Accuracy(correct=2, total=11), Accuracy(correct=6, total=11))
    assert result.kinds == {"right": Accuracy(correct=2, total=2), "wrong": Accuracy(correct=0, total=9)}
    assert result.kinds_first_word == {"right": Accuracy(correct=2, total=2), "wrong": Accuracy(correct=4, total=9)}
    told_as = result.as_dict()
    assert (told_as["correct"], told_as["first_word"]["correct"]) == (2, 6)
    assert told_as["kinds"]["wrong"]["first_word"]["accuracy"] == 4 / 9


def test_exact_match_kinds_and_shared_pictures(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = {name: fx.picture(*bright) for name, bright in {"a": (1, 2, 3), "b": (8, 9, 10)}.items()}
    truth = {(name, q): runtime.answer(pictures[name], q, 4).text.strip() for name in pictures for q in ("x", "yy")}
    assert len(set(truth.values())) == 4
    questions = [
        Question(picture=name, load=lambda name=name: pictures[name], prompt=q, answers=answers, kind=kind)
        for name, q, answers, kind in (
            ("a", "x", (truth["a", "x"],), "first"),
            ("b", "x", ("wrong", truth["b", "x"].upper()), "first"),
            ("a", "yy", ("wrong",), "second"),
            ("b", "yy", (truth["a", "x"],), None),
        )
    ]
    encoded: list[object] = []
    encode = runtime.encode_image
    monkeypatch.setattr(runtime, "encode_image", lambda image: encoded.append(image) or encode(image))
    done: list[int] = []
    result = evaluate(runtime, questions, max_new_tokens=4, on_answer=lambda: done.append(1))
    assert len(encoded) == 2
    assert len(done) == 4
    assert [one.correct for one in result.predictions] == [True, True, False, False]
    assert [(one.picture, one.prompt) for one in result.predictions] == [(q.picture, q.prompt) for q in questions]
    assert result.overall == Accuracy(correct=2, total=4)
    assert result.kinds == {"first": Accuracy(correct=2, total=2), "second": Accuracy(correct=0, total=1)}
    exported = json.loads(json.dumps(result.as_dict(predictions=True), allow_nan=False))
    assert exported["accuracy"] == 0.5
    assert exported["predictions"][0]["predicted"] == truth["a", "x"]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_json_lines(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    fx.save_picture(tmp_path / "pictures" / "p.png", 3)
    path = write(
        tmp_path / "q.jsonl",
        {"image": "pictures/p.png", "prompt": "a", "answer": "x"},
        "",
        {"image": "pictures/p.png", "prompt": "b", "answers": ["x", "y"], "kind": 3},
    )
    first, second = load_questions(str(path))
    assert (first.prompt, first.answers, first.kind) == ("a", ("x",), None)
    assert (second.answers, second.kind) == (("x", "y"), "3")
    assert first.picture == second.picture
    assert first.load().size == (8, 8)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 1 of .* isn't JSON"),
        ("[]", "isn't an object"),
        ({"image": "p.png", "prompt": "a"}, "needs 'answer'"),
        ({"image": "p.png", "prompt": "a", "answers": []}, "needs 'answer'"),
        ({"image": "p.png", "prompt": "a", "answer": 7}, "needs 'answer'"),
        ({"image": "p.png", "answer": "x"}, "needs 'image'"),
        ({"image": "none.png", "prompt": "a", "answer": "x"}, r"there is no picture .*none\.png"),
    ],
)
def test_bad_json_lines(tmp_path: Path, row: Any, message: str) -> None:
    fx.save_picture(tmp_path / "p.png", 3)
    with pytest.raises(InputError, match=message):
        load_questions(str(write(tmp_path / "q.jsonl", row)))


def test_nothing_to_ask(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no questions"):
        load_questions(str(write(tmp_path / "q.jsonl", "")))
    with pytest.raises(InputError, match="give 'tiny-llava' or a JSON Lines file"):
        load_questions(str(tmp_path / "none.jsonl"))


def test_tiny_llava_is_fixed() -> None:
    pytest.importorskip("sklearn")
    questions = load_questions("tiny-llava")
    assert len(questions) == 2000
    assert len({question.picture for question in questions}) == 250
    assert questions[0].load().size == (96, 96)
    assert all(question.kind and question.answers for question in questions)
