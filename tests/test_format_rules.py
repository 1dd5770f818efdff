"""Public data sets are scored by their published rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import runtime_fixtures as fx
from format_folders import MAKERS, MMBENCH, asked, mmbench, values

from lmmprune.compiler.data.questions import Question
from lmmprune.compiler.measure.formats.refcoco import find_box, overlap, padded, thousandths
from lmmprune.compiler.measure.formats.table import get_format, read_format
from lmmprune.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    def made(name: str) -> Path:
        MAKERS[name](tmp_path / name)
        return tmp_path / name

    return made


def test_pope_is_scored_as_scikit_learn_does(folder: Callable[[str], Path]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    # What is said, and what the released evaluation makes of it: "no" is a word of the first sentence.
    told = [
        *[("Yes", 1), ("No, there is none", 0), ("no. Yes", 0), ("There is a dog", 1)],
        *[("Yes", 1), ("None", 1), ("yes", 1), ("It is not there.", 0)],
        *[("NO", 1), ("Yes. There is no doubt", 1), ("no", 0), ("Not at all", 1)],
    ]
    found = values(asked("pope", folder("pope"), *(said for said, _ in told)))
    truth = [1, 0, 1, 0]
    means: dict[str, list[float]] = {}
    for place, category in enumerate(("random", "popular", "adversarial")):
        made = [label for _, label in told[4 * place : 4 * place + 4]]
        expected = {
            "F1": metrics.f1_score(truth, made),
            "accuracy": metrics.accuracy_score(truth, made),
            "precision": metrics.precision_score(truth, made),
            "recall": metrics.recall_score(truth, made),
            "yes": sum(made) / 4,
        }
        for name, value in expected.items():
            assert found[f"{name}, {category}"] == pytest.approx(value), (name, category)
            means.setdefault(name, []).append(value)
    assert {name: found[name] for name in means} == pytest.approx({name: sum(v) / 3 for name, v in means.items()})
    assert len({*means["F1"]}) == 3, "three different ones were put together"
    assert next(iter(found)) == "F1"


def question(picture: str, answer: str, kind: str, group: str | None = None) -> Question:
    return Question(picture=picture, load=fx.picture, prompt="x", answers=(answer,), kind=kind, group=group)


def test_pope_gives_five_figures_that_fit_together() -> None:
    # As its paper's table is remembered; no copy was at hand to compare with. Three of the figures give the counts.
    # LLaVA with random objects: accuracy 50.37, precision 50.19, recall 99.13, F1 66.64, yes 98.77, of 1,500 questions
    # of each kind. So it said yes 2,963 times, 1,487 of them rightly.
    asked_about = [question(str(n // 6), "yes" if n < 1500 else "no", "random") for n in range(3000)]
    said = ["Yes"] * 1487 + ["No"] * 13 + ["Yes"] * 1476 + ["No"] * 24
    found = get_format("pope").score(asked_about, said, [0.0] * 3000).estimates()
    published = {"accuracy": 50.37, "precision": 50.19, "recall": 99.13, "F1": 66.64, "yes": 98.77}
    assert {name: round(100 * found[name].value, 2) for name in published} == published


# What the released evaluation printed for InternLM-XComposer-VL, with the number of pictures of each subtask.
MME = {
    "existence": (30, 190.0),
    "count": (30, 158.33333333333331),
    "position": (30, 126.66666666666666),
    "color": (30, 165.0),
    "posters": (147, 161.9047619047619),
    "celebrity": (170, 150.2941176470588),
    "scene": (200, 159.75),
    "landmark": (200, 165.25),
    "artwork": (200, 126.25),
    "OCR": (20, 125.0),
    "commonsense_reasoning": (70, 138.57142857142858),
    "numerical_calculation": (20, 55.0),
    "text_translation": (20, 112.5),
    "code_reasoning": (20, 85.0),
}


def test_mme_gives_what_its_own_evaluation_printed() -> None:
    asked_about, right = [], []
    for subtask, (pictures, points) in MME.items():
        # points = 100 (right / 2n + both / n): counts that give them.
        parts = round(points * 2 * pictures / 100)
        both = next(b for b in range(pictures, -1, -1) if 2 * b <= parts - 2 * b <= pictures + b)
        for n in range(pictures):
            name = f"{subtask}/{n}"
            asked_about += [question(name, answer, subtask, name) for answer in ("yes", "no")]
            right += [1.0, 1.0] if n < both else [float(n < parts - 3 * both), 0.0]
    found = get_format("mme").score(asked_about, [""] * len(right), right).estimates()
    assert {name: found[name].value for name in MME} == pytest.approx(
        {name: points for name, (_, points) in MME.items()}
    )
    assert found["perception"].value == pytest.approx(1528.4488795518207)
    assert found["cognition"].value == pytest.approx(391.07142857142856)
    assert found["perception"].low < 1528 < found["perception"].high


def test_chance_has_half_and_a_quarter_on_mme() -> None:
    """As section 2.2 of the paper says of random answers."""
    asked_about = [question(str(n), answer, "OCR", str(n)) for n in range(4) for answer in ("yes", "no")]
    found = get_format("mme").score(asked_about, [""] * 8, [0, 0, 0, 1, 1, 0, 1, 1]).estimates()
    assert (found["OCR, accuracy"].value, found["OCR, accuracy+"].value, found["OCR"].value) == (0.5, 0.25, 75)


def test_pope_without_any_yes_has_no_f1(folder: Callable[[str], Path]) -> None:
    found = values(asked("pope", folder("pope"), *["no"] * 12))
    assert (found["F1"], found["precision"], found["accuracy"], found["yes"]) == (0, 0, 0.5, 0)


def test_mme_gives_points_for_questions_and_for_pictures(folder: Callable[[str], Path]) -> None:
    # By picture, (Yes, No) expected. existence: both, one right; OCR: none, one; artwork: all; code: other, other.
    told = {
        "existence": ["Yes", "No.", "yes, it is", "Yes"],
        "OCR": ["no", "yes", "the", "not at all"],
        "artwork": ["Yes", "No", "yes", "no"],
        "code_reasoning": ["I see yes", "", "maybe yes", "definitely no"],
    }
    home = folder("mme")
    kinds = [question.kind for question in read_format(get_format("mme"), home)]
    assert [*dict.fromkeys(kinds)] == ["existence", "artwork", "OCR", "code_reasoning"], "as in the paper"
    found = values(asked("mme", home, *(word for kind in dict.fromkeys(kinds) for word in told[str(kind)])))
    assert found["existence, accuracy"] == 3 / 4
    assert found["existence, accuracy+"] == 1 / 2
    # OCR: "not at all" begins with "no"; "the" is neither.
    assert (found["OCR, accuracy"], found["OCR, accuracy+"]) == (1 / 4, 0)
    assert (found["existence"], found["OCR"], found["artwork"], found["code_reasoning"]) == (125, 25, 200, 0)
    assert (found["perception"], found["cognition"], found["total"]) == (350, 0, 350)
    form = get_format("mme")
    questions = read_format(form, home)
    formulas = form.score(questions, [""] * 16, [0.0] * 16).formulas
    assert (formulas["perception"].most, formulas["cognition"].most, formulas["total"].most) == (600, 200, 800)


@pytest.mark.parametrize(
    ("said", "first", "second"),
    [
        ("Nokia.", 1.0, 0.6),  # two of ten: by leaving one out, 2 x 1/3 and 8 x 2/3
        ("nokia's", 0.0, 0.3),  # one of ten
        ("lapnokia", 0.0, 1.0),
        ("phone", 0.0, 0.0),
    ],
)
def test_textvqa_counts_people(said: str, first: float, second: float, folder: Callable[[str], Path]) -> None:
    found = asked("textvqa", folder("textvqa"), said, said)
    assert [one.correct for one in found.predictions] == pytest.approx([first, second])
    assert values(found) == pytest.approx({"accuracy": (first + second) / 2})


def test_gqa_tells_binary_from_open(folder: Callable[[str], Path]) -> None:
    found = values(asked("gqa", folder("gqa"), "No.", "the woman", "Left"))
    assert found == pytest.approx({"accuracy": 2 / 3, "binary": 1, "open": 0})


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("B", True),
        ("B. b", True),
        ("The answer is B.", True),
        ("Because so. The answer is B", True),
        ("B.", False),  # the released evaluation wants a blank behind it
        ("(B)", False),
        ("b", False),
        ("A", False),
        ("D", False),
    ],
)
def test_scienceqa_reads_letters(said: str, right: bool, folder: Callable[[str], Path]) -> None:
    found = values(asked("scienceqa", folder("scienceqa"), said, "A"))
    assert found == pytest.approx({"accuracy": (1 + right) / 2, "natural science": float(right), "social science": 1})


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("C", True),
        ("C.", True),
        ("(C) blue", True),
        ("Option C", True),
        ("It is a BLUE car", True),
        ("A blue car is there", True),  # an article, and the text of one option
        ("B or C", False),
        ("A", False),
        ("D", False),
        ("red or blue", False),
        ("", False),
    ],
)
def test_mmbench_reads_letters_and_texts(said: str, right: bool, tmp_path: Path) -> None:
    mmbench(tmp_path, MMBENCH[1:2])
    assert values(asked("mmbench", tmp_path, said)) == {"accuracy": right}


def test_mmbench_in_a_circle(folder: Callable[[str], Path]) -> None:
    home = folder("mmbench")
    first, second, shifted = read_format(get_format("mmbench"), home)
    assert (first.group, second.group, shifted.group) == ("241", "252", "241")
    assert first.picture == shifted.picture != second.picture, "its picture stands in another row"
    assert values(asked("mmbench", home, "A", "C", "B")) == {"circular": 1, "vanilla": 1}
    assert values(asked("mmbench", home, "A", "C", "A")) == {"circular": 1 / 2, "vanilla": 1}
    assert values(asked("mmbench", home, "B", "A", "B")) == {"circular": 0, "vanilla": 0}
    assert len(read_format(get_format("mmbench"), home, limit=1)) == 2, "what counts together is asked together"


@pytest.mark.parametrize(
    ("said", "right"),
    [
        # The box is [0.1, 0.25, 0.5, 0.75] of the padded square, 0.2 in area.
        ("[0.10, 0.25, 0.50, 0.75]", True),
        ("[0.1, 0.25, 0.3001, 0.75]", True),  # half of it
        ("[0.1, 0.25, 0.29, 0.75]", False),
        ("[0.10, 0.17, 0.50, 0.83]", True),  # of the picture instead: 0.2 / 0.264
        ("It is at (100,167),(500,833)", True),
        ("[[100, 167, 500, 833]]", True),
        ("[100, 250, 300, 750]", False),
        ("[0.5, 0.75, 0.1, 0.25]", False),
        ("the left cat", False),
        ("[1, 2, 3]", False),
    ],
)
def test_boxes_of_both_kinds(said: str, right: bool, folder: Callable[[str], Path]) -> None:
    found = values(asked("refcoco", folder("refcoco"), said, "none"))
    assert found == {"accuracy": right / 2, "refcoco_val": right, "refcocog_test": 0}


def test_overlaps_and_frames() -> None:
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert overlap((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert overlap((0, 0, 0, 0), (0, 0, 0, 0)) == 0
    # A picture of 100 x 200 has 50 at its left in the square.
    assert padded((0, 0, 100, 200), 100, 200) == (0.25, 0, 0.75, 1)
    assert thousandths((50, 50, 100, 200), 100, 200) == (500, 250, 1000, 1000)
    assert find_box("x .5,0.5, 1, 1.0 y") == (0.5, 0.5, 1, 1)


def test_intervals_and_differences_are_paired(folder: Callable[[str], Path]) -> None:
    home = folder("pope")
    base = asked("pope", home, *["yes", "no"] * 6)
    same = asked("pope", home, *["yes", "no"] * 6)
    worse = asked("pope", home, *["yes", "yes"] * 6)
    assert base.figures is not None
    all_right = base.figures.estimates()["accuracy"]
    assert (all_right.low, all_right.value, all_right.high) == (1, 1, 1)
    assert {(one.low, one.value, one.high) for one in same.differences(base).values()} == {(0, 0, 0)}
    less = worse.differences(base)
    assert less["F1"].value == pytest.approx(2 / 3 - 1)
    assert less["accuracy"].value == pytest.approx(-0.5)
    assert less["F1"].low <= less["F1"].value <= less["F1"].high <= 0
    with pytest.raises(InputError, match="different questions"):
        base.differences(asked("gqa", folder("gqa"), "a", "b", "c"))
