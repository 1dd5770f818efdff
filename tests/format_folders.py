"""Small folders with the layouts of public data sets, made by us, and a model that says what it is told to."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import runtime_fixtures as fx

from lmmprune.compiler.measure.evaluate import Evaluation, evaluate
from lmmprune.compiler.measure.formats.table import get_format, read_format


def lines(path: Path, *rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def picture(path: Path, *bright: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    fx.save_picture(path, *bright)
    return path.name


def pope(home: Path) -> None:
    for place, category in enumerate(("random", "popular", "adversarial")):
        rows = [
            {"question_id": n, "image": f"COCO_{n // 2}.jpg", "text": f"Is there a {category}?", "label": label}
            for n, label in enumerate(("yes", "no", "yes", "no"), 1)
        ]
        lines(home / ("coco" if place else ".") / f"coco_pope_{category}.json", *rows)
    for number in range(3):
        picture(home / "val2014" / f"COCO_{number}.jpg", number)


def gqa(home: Path) -> None:
    rows = {
        "201307251": question_of_gqa("n1", "Is it overcast?", "no", "verify"),
        "201640614": question_of_gqa("n2", "Who is wearing the dress?", "woman", "query"),
        "202225914": question_of_gqa("n1", "Is the cat left or right of the box?", "left", "choose"),
        "202225915": {**question_of_gqa("n1", "Is it?", "no", "verify"), "isBalanced": False},
    }
    (home / "questions1.2").mkdir(parents=True)
    (home / "questions1.2" / "testdev_balanced_questions.json").write_text(json.dumps(rows))
    for name in ("n1", "n2"):
        picture(home / "images" / f"{name}.jpg", int(name[1]))


def question_of_gqa(image: str, question: str, answer: str, structural: str) -> dict[str, Any]:
    types = {"structural": structural, "semantic": "global", "detailed": "weatherVerify"}
    return {"imageId": image, "question": question, "answer": answer, "types": types, "isBalanced": True}


def mme(home: Path) -> None:
    for name, apart in (("existence", False), ("OCR", False), ("artwork", True), ("code_reasoning", False)):
        texts, pictures = (
            (home / name / "questions_answers_YN", home / name / "images") if apart else (home / name, home / name)
        )
        for number in range(2):
            picture(pictures / f"{number:04}.{'jpg' if apart else 'png'}", number)
            texts.mkdir(exist_ok=True)
            text = "Is it there?  Please answer yes or no.\tYes\nIs it gone? Please answer yes or no.\tNo\n"
            (texts / f"{number:04}.txt").write_text(text)


def textvqa(home: Path) -> None:
    rows = [
        {"question_id": 34602, "image_id": "003a8ae2", "question": "what is the brand?", "answers": answers}
        for answers in (["nokia"] * 10, ["nokia"] * 2 + ["Nokia's"] + ["lapnokia"] * 7)
    ]
    home.mkdir(parents=True, exist_ok=True)
    (home / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": rows}))
    picture(home / "train_images" / "003a8ae2.jpg", 5)


def scienceqa(home: Path) -> None:
    shared = {"answer": 1, "subject": "natural science", "split": "test", "task": "closed choice", "grade": "grade7"}
    problems = {
        "4": {**shared, "question": "No picture?", "choices": ["a", "b"], "hint": "", "image": None},
        "5": {**shared, "question": "Which is it?", "choices": ["a", "b", "c"], "hint": "Look.", "image": "image.png"},
        "6": {**shared, "question": "And this?", "choices": ["a", "b"], "hint": "", "image": "image.png"},
        "7": {**shared, "question": "Trained on?", "choices": ["a", "b"], "hint": "", "image": "image.png"},
    }
    problems["6"] |= {"answer": 0, "subject": "social science"}
    home.mkdir(parents=True, exist_ok=True)
    (home / "problems.json").write_text(json.dumps(problems))
    (home / "pid_splits.json").write_text(json.dumps({"train": ["7"], "val": [], "test": ["4", "5", "6"]}))
    for number in ("5", "6"):
        picture(home / "test" / number / "image.png", int(number))


def packed(*bright: int) -> str:
    stream = io.BytesIO()
    fx.picture(*bright).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


MMBENCH = [
    {"index": "241", "question": "Which?", "hint": "See\nbelow.", "A": "up", "B": "down", "C": "", "answer": "A"},
    {"index": "252", "question": "What?", "hint": "nan", "A": "red", "B": "green", "C": "blue", "answer": "C"},
    {"index": "1000241", "question": "Which?", "hint": "See\nbelow.", "A": "down", "B": "up", "C": "", "answer": "B"},
]


def mmbench(home: Path, rows: Sequence[dict[str, str]] = MMBENCH) -> None:
    home.mkdir(parents=True, exist_ok=True)
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category", "split"]
    with (home / "mmbench_dev.tsv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, delimiter="\t", restval="")
        writer.writeheader()
        for row in rows:
            own = "241" if row["index"] == "1000241" else packed(int(row["index"][-1]))
            writer.writerow({"category": "spatial", "image": own, **row})


def refcoco(home: Path) -> None:
    row = {"image": "data/coco/train2014/COCO_train2014_1.jpg", "width": 640, "height": 480}
    lines(home / "refcoco_val.jsonl", {**row, "sent": "the left cat", "bbox": [64, 80, 320, 400]})
    lines(home / "refcocog_test.jsonl", {**row, "sent": "a dog", "bbox": [0, 0, 64, 48]})
    picture(home / "train2014" / "COCO_train2014_1.jpg", 1)


MAKERS: dict[str, Callable[[Path], None]] = {
    "pope": pope,
    "gqa": gqa,
    "mme": mme,
    "textvqa": textvqa,
    "scienceqa": scienceqa,
    "mmbench": mmbench,
    "refcoco": refcoco,
}


def asked(name: str, home: Path, *said: str, limit: int | None = None) -> Evaluation:
    """Evaluate as if a model said these words to the questions, in their order."""
    form = get_format(name)
    questions = read_format(form, home, limit=limit)
    assert len(questions) == len(said)
    # Pictures are gone through by name, and what was asked about one in its order.
    order = sorted(range(len(said)), key=lambda index: questions[index].picture)
    told = iter([said[index] for index in order])
    model = SimpleNamespace(
        bundle=SimpleNamespace(manifest=SimpleNamespace(rows=1, batch=None, video=None, joint=False, images=1)),
        encode_images=lambda images: images,
        answer=lambda *_: SimpleNamespace(text=next(told), stats=SimpleNamespace(sizes=(), tiles=())),
    )
    return evaluate(model, questions, form=form)  # type: ignore[arg-type]  # what evaluate takes of a run-time


def values(found: Evaluation) -> dict[str, float]:
    assert found.figures is not None
    return {name: one.value for name, one in found.figures.estimates().items()}
