"""Public data sets: small folders of their layouts are read and asked, and what is wrong with one is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import runtime_fixtures as fx
from format_folders import MAKERS, MMBENCH, lines, mmbench

from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.measure.evaluate import evaluate
from lmmprune.compiler.measure.formats.table import FORMATS, get_format, read_format
from lmmprune.compiler.runtime.runtime import Runtime
from lmmprune.errors import InputError

Cli = Callable[..., tuple[int, str, str]]
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    def made(name: str) -> Path:
        MAKERS[name](tmp_path / name)
        return tmp_path / name

    return made


def test_there_is_a_folder_for_every_format() -> None:
    assert {*MAKERS} == {*FORMATS}
    for form in FORMATS.values():
        assert form.template.count("{question}") == 1
        assert "arXiv" in form.reference


PROMPTS = {
    # The first question of each, as LLaVA-1.5's guide to evaluation writes them.
    "pope": ("Is there a random?" + SHORT, ("yes",), "random"),
    "gqa": ("Is it overcast?" + SHORT, ("no",), "verify"),
    "mme": ("Is it there?" + SHORT, ("yes",), "existence"),
    "textvqa": ("what is the brand?" + SHORT, ("nokia",) * 10, None),
    "scienceqa": ("Context: Look.\nWhich is it?\nA. a\nB. b\nC. c" + LETTER, ("B",), "natural science"),
    "mmbench": ("See\nbelow.\nWhich?\nA. up\nB. down" + LETTER, ("A",), "spatial"),
    "refcoco": (
        "Please provide the bounding box coordinate of the region this sentence describes: the left cat",
        # 640 x 480 lies 80 below the top of its square of 640.
        ("[0.100000, 0.250000, 0.500000, 0.750000]", "[100.000000, 166.666667, 500.000000, 833.333333]"),
        "refcoco_val",
    ),
}
COUNTS = {"pope": 12, "gqa": 3, "mme": 16, "textvqa": 2, "scienceqa": 2, "mmbench": 3, "refcoco": 2}


@pytest.mark.parametrize("name", FORMATS)
def test_layouts_are_read(name: str, folder: Callable[[str], Path]) -> None:
    found = read_format(get_format(name), folder(name))
    assert (found[0].prompt, found[0].answers, found[0].kind) == PROMPTS[name]
    assert len(found) == COUNTS[name]
    assert {question.load().size for question in found} == {(8, 8)}


def test_a_limit_takes_whole_pictures_of_mme(folder: Callable[[str], Path]) -> None:
    found = read_format(get_format("mme"), folder("mme"), limit=3)
    assert [question.kind for question in found] == ["existence"] * 4


WRONG: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no questions": ("pope", lambda home: (home / "coco_pope_random.json").unlink(), "no 'coco_pope_random.json'"),
    "label": (
        "pope",
        lambda home: lines(home / "coco_pope_random.json", {"image": "COCO_0.jpg", "text": "x", "label": "maybe"}),
        "line 1 of .* has the label 'maybe'",
    ),
    "field": ("pope", lambda home: lines(home / "coco_pope_random.json", {"text": "x"}), "needs 'label'"),
    "no JSON": ("pope", lambda home: (home / "coco_pope_random.json").write_text("{"), "line 1 of .* isn't JSON"),
    "a list": ("pope", lambda home: lines(home / "coco_pope_random.json", []), "isn't an object"),
    "picture": (
        "pope",
        lambda home: (home / "val2014" / "COCO_1.jpg").unlink(),
        r"1 of 3 pictures are missing, 'COCO_1\.jpg' is the first: looked in .*val2014.*--pictures",
    ),
    "gqa": (
        "gqa",
        lambda home: (home / "questions1.2" / "testdev_balanced_questions.json").write_text("[]"),
        "holds list, expected an object",
    ),
    "gqa picture": ("gqa", lambda home: (home / "images" / "n2.jpg").unlink(), r"'n2\.jpg' is the first"),
    "mme line": ("mme", lambda home: (home / "OCR" / "0000.txt").write_text("a\tYes\nb No\n"), "a tab, and Yes or No"),
    "mme lines": ("mme", lambda home: (home / "OCR" / "0000.txt").write_text("a\tYes\n"), "has 1 lines: expected two"),
    "mme picture": ("mme", lambda home: (home / "OCR" / "0001.png").unlink(), "'0001.jpg' is the first"),
    "textvqa": (
        "textvqa",
        lambda home: (home / "TextVQA_0.5.1_val.json").write_text('{"data": [{"image_id": "x", "answers": ["a"]}]}'),
        "question 1 of .* needs 'answers', a list of 10 texts",
    ),
    "textvqa data": ("textvqa", lambda home: (home / "TextVQA_0.5.1_val.json").write_text("{}"), "no list 'data'"),
    "scienceqa split": (
        "scienceqa",
        lambda home: (home / "pid_splits.json").write_text('{"test": ["9"]}'),
        "question 9 of .* isn't there",
    ),
    "scienceqa none": (
        "scienceqa",
        lambda home: (home / "pid_splits.json").write_text('{"test": ["4"]}'),
        "holds no questions of ScienceQA",
    ),
    "mmbench answer": (
        "mmbench",
        lambda home: mmbench(home, [{**MMBENCH[1], "answer": ""}]),
        r"has the answer '': .* take the set 'dev'",
    ),
    "mmbench options": ("mmbench", lambda home: mmbench(home, [{**MMBENCH[1], "B": ""}]), "the options 'A' and 'B'"),
    "mmbench picture": ("mmbench", lambda home: mmbench(home, [{**MMBENCH[1], "image": "77"}]), "has no picture"),
    "mmbench index": ("mmbench", lambda home: mmbench(home, [{**MMBENCH[1], "index": "x3"}]), "the index 'x3'"),
    "mmbench twice": ("mmbench", lambda home: mmbench(home, MMBENCH[1:2] * 2), "row 2 of .* has the index '252'"),
    "mmbench long": ("mmbench", lambda home: mmbench(home, [{**MMBENCH[1], "index": "9" * 5000}]), "the index '999"),
    "mmbench two": ("mmbench", lambda home: (home / "b.tsv").write_text(""), "holds 2 TSV files"),
    "refcoco box": (
        "refcoco",
        lambda home: lines(home / "refcoco_val.jsonl", {"image": "x", "sent": "y", "bbox": [1, 2, 1, 4]}),
        "needs 'bbox'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str, folder: Callable[[str], Path]) -> None:
    name, damage, message = WRONG[case]
    home = folder(name)
    read_format(get_format(name), home)
    damage(home)
    with pytest.raises(InputError, match=message):
        read_format(get_format(name), home)


def test_a_picture_that_isnt_one_is_named_when_it_is_asked_about(tmp_path: Path) -> None:
    mmbench(tmp_path, [{**MMBENCH[1], "image": "%%%"}])
    (question,) = read_format(get_format("mmbench"), tmp_path)
    with pytest.raises(InputError, match=r"the picture of question 252 of .* isn't base64"):
        question.load()


def test_pictures_elsewhere(folder: Callable[[str], Path], tmp_path: Path) -> None:
    home = folder("refcoco")
    (home / "train2014").rename(tmp_path / "coco")
    with pytest.raises(InputError, match=r"'COCO_train2014_1\.jpg' is the first"):
        read_format(get_format("refcoco"), home)
    assert len(read_format(get_format("refcoco"), home, tmp_path / "coco")) == 2
    with pytest.raises(InputError, match="give the one with the pictures"):
        read_format(get_format("refcoco"), home, tmp_path / "none")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    made = tmp_path_factory.mktemp("formats")
    return (
        fx.make_bundle(made / "full", max_positions=512).path,
        fx.make_bundle(made / "half", keep=8, max_positions=512).path,
    )


@pytest.mark.parametrize("name", FORMATS)
def test_a_bundle_is_asked(
    name: str, bundles: tuple[Path, Path], folder: Callable[[str], Path], cli: Cli, tmp_path: Path
) -> None:
    words = ("eval", bundles[1], "--data", folder(name), "--format", name, "--max-new-tokens", 3)
    code, out, err = cli(*words, "--json", "--predictions", tmp_path / "said.jsonl")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["format"], found["total"]) == (name, COUNTS[name])
    assert "match" not in found
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert rows[0]["prompt"] == PROMPTS[name][0]
    # The figures that are told follow from what was said.
    form = get_format(name)
    questions = read_format(form, tmp_path / name)
    said = [row["predicted"] for row in rows]
    again = form.score(questions, said, [form.judge(one, text) for one, text in zip(questions, said, strict=True)])
    assert {key: one["value"] for key, one in found["figures"].items()} == {
        key: one.value for key, one in again.estimates().items()
    }


def test_several_bundles_are_compared_by_the_figures(
    bundles: tuple[Path, Path], folder: Callable[[str], Path], cli: Cli
) -> None:
    words = ("eval", *bundles, "--data", folder("pope"), "--format", "pope", "--max-new-tokens", 2)
    found = json.loads(cli(*words, "--json")[1])["bundles"]
    assert {*found[0]["differences"]} == {*found[0]["figures"]}
    assert found[1]["differences"]["F1"]["value"] == pytest.approx(
        found[1]["figures"]["F1"]["value"] - found[0]["figures"]["F1"]["value"]
    )
    code, out, err = cli(*words)
    assert code == 0
    assert "POPE" in out
    assert "F1, adversarial" in out
    assert "12 questions; Li et al., 2023" in err
    single = cli("eval", bundles[0], "--data", folder_of(words), "--format", "pope", "--max-new-tokens", 2)[1]
    assert "95 % interval" in single


def folder_of(words: Sequence[object]) -> object:
    return words[words.index("--data") + 1]


def test_from_python(bundles: tuple[Path, Path], folder: Callable[[str], Path]) -> None:
    import lmmprune

    folder_of_gqa = folder("gqa")
    found = lmmprune.evaluate(bundles[0], folder_of_gqa, format="gqa", limit=2, max_new_tokens=2)
    assert found.overall.total == 2
    assert found.as_dict()["figures"]["accuracy"]["most"] == 1
    with pytest.raises(InputError, match="the match 'vqa' is given for GQA"):
        lmmprune.evaluate(bundles[0], folder_of_gqa, format="gqa", match="vqa")
    with pytest.raises(InputError, match="give its format, too"):
        lmmprune.evaluate(bundles[0], "x", pictures="y")
    with pytest.raises(InputError, match="did you mean 'gqa'"):
        lmmprune.evaluate(bundles[0], "x", format="gqaa")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "pop", "--data", "x"), "no format 'pop'; did you mean 'pope'?"),
        (("--format", "xyz", "--data", "x"), "known: gqa, mmbench, mme, pope, refcoco, scienceqa, textvqa"),
        (("--format", "gqa", "--data", "{home}/none"), "testdev_balanced_questions.json and images/"),
        (("--format", "gqa", "--data", "{home}"), "there is no 'testdev_balanced_questions.json'"),
        (("--format", "gqa", "--data", "{home}", "--match", "vqa"), "--match is for questions of your own"),
        (("--pictures", "{home}", "--data", "x"), "--pictures is for public sets: add --format"),
    ],
)
def test_mistakes_are_one_line(
    words: Sequence[str], message: str, bundles: tuple[Path, Path], refusal: Callable[..., str], tmp_path: Path
) -> None:
    assert message in refusal("eval", bundles[0], *(word.format(home=tmp_path) for word in words))


def test_a_box_needs_more_words_than_a_word(bundles: tuple[Path, Path], folder: Callable[[str], Path]) -> None:
    home = folder("refcoco")
    runtime = Runtime(Bundle.open(bundles[0]))
    told: list[int] = []
    model = SimpleNamespace(
        bundle=runtime.bundle,
        encode_images=runtime.encode_images,
        answer=lambda image, prompt, limit: (
            told.append(limit) or SimpleNamespace(text="", stats=SimpleNamespace(sizes=(), tiles=()))
        ),
    )
    for name, limit in (("refcoco", 64), ("pope", 16)):
        form = get_format(name)
        questions = read_format(form, home if name == "refcoco" else folder("pope"), limit=1)
        evaluate(model, questions, form=form)  # type: ignore[arg-type]  # what evaluate takes of a run-time
        assert told[-1] == limit
