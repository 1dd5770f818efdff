from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import runtime_fixtures as fx

from lmmprune.compiler.data.questions import Question, load_questions
from lmmprune.compiler.measure.evaluate import Accuracy, evaluate
from lmmprune.compiler.measure.matching import MATCHES, normalized
from lmmprune.compiler.measure.vqa_text import vqa_normalized
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
        bundle=SimpleNamespace(manifest=SimpleNamespace(rows=1, batch=None, images=1, joint=False, video=None)),
        encode_images=lambda pictures: pictures,
        answer=lambda pictures, prompt, limit: SimpleNamespace(
            text=next(told), stats=SimpleNamespace(sizes=(), tiles=())
        ),
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
    encode = runtime.encode_images
    monkeypatch.setattr(runtime, "encode_images", lambda seen: encoded.append(seen) or encode(seen))
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


VQA = [
    # By the released evaluation's rules: thirds of the others who agree, averaged over leaving each one out.
    ("yes", ["yes"] * 10, 1.0),
    ("yes", ["yes"] * 3 + ["no"] * 7, 0.9),
    ("yes", ["yes"] * 2 + ["no"] * 8, 0.6),
    ("yes", ["yes"] + ["no"] * 9, 0.3),
    ("maybe", ["yes"] * 10, 0.0),
    ("A dog.", ["the dog"], 1.0),
    ("two", ["2"], 1.0),
    ("1,000", ["1000"], 1.0),
    ("7.5", ["75"], 0.0),
    ("don't", ["dont"], 1.0),
    ("red/blue", ["red blue"], 1.0),
]
# By hand, from the steps of the released evaluation.
FORMS = [
    ("A dog.", "dog"),
    ("dont", "don't"),
    ("Couldnt've", "couldn't've"),
    ("yalld've", "yalld've"),
    ("its", "its"),
    ("it's", "it's"),
    ("somebody'd", "somebodyd"),
    ("twas ten", "'twas 10"),
    ("red/blue", "red blue"),
    ("red / blue", "red blue"),
    ("red,blue", "red blue"),
    ("red, blue", "red blue"),
    ("1,000/2", "10002"),
    ("7.5", "7.5"),
    ("7.", "7"),
    ("a.b", "ab"),
    ("st. none", "st 0"),
    ("12:30", "12:30"),
    ("one\ttwo\nthree", "1 2 3"),
]


@pytest.mark.parametrize(("answer", "form"), FORMS)
def test_the_form_in_which_vqa_compares(answer: str, form: str) -> None:
    assert vqa_normalized(answer) == form


@pytest.mark.parametrize(("said", "answers", "score"), VQA)
def test_answers_of_many_people(said: str, answers: list[str], score: float) -> None:
    assert MATCHES["vqa"](said, answers) == pytest.approx(score)


@pytest.mark.parametrize(
    ("said", "answer", "inside"),
    [("it is Red.", "red", True), ("bored", "red", False), ("a red-hot iron", "red", True), ("red", "red car", False)],
)
def test_answers_inside_of_others(said: str, answer: str, inside: bool) -> None:
    assert MATCHES["contains"](said, [answer, "never"]) == inside
    assert MATCHES["exact"](said, [answer]) == (said == answer)


def test_other_matches_and_differences(runtime: Runtime, tmp_path: Path) -> None:
    picture = fx.picture(1, 2, 3)
    said = runtime.answer(picture, "x", 4).text.strip()
    asked = [
        Question(picture=str(number), load=lambda: picture, prompt="x", answers=answers)
        for number, answers in enumerate([(said,) * 4, (said, said, "no", "no")])
    ]
    found = evaluate(runtime, asked, max_new_tokens=4, match="vqa")
    # Two of four agree: left out in turn, one third twice and two thirds twice.
    assert [one.correct for one in found.predictions] == pytest.approx([1, 0.5])
    assert found.overall.value == pytest.approx(0.75)
    exact = evaluate(runtime, asked, max_new_tokens=4)
    beside = found.difference(exact)
    assert (beside.value, beside.low, beside.high) == pytest.approx((-0.25, -0.5, 0))
    with pytest.raises(InputError, match="different questions"):
        found.difference(evaluate(runtime, asked[:1], max_new_tokens=4))
    with pytest.raises(InputError, match="did you mean 'exact'"):
        evaluate(runtime, asked, match="exat")


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
