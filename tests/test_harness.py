"""lmms-eval itself, and VLMEvalKit's client, find what ``lmmprune eval`` finds: in their process, and over HTTP."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness_fixtures as hf
import pytest
import serve_fixtures as sf
from exports import exported
from PIL import Image

import lmmprune
from lmmprune.compiler.cli import main
from lmmprune.compiler.harness.settings import Settings, read_settings
from lmmprune.compiler.runtime.sampling import Sampling
from lmmprune.errors import InputError

real = pytest.mark.skipif(not hf.HOME.is_dir(), reason=f"no {hf.HOME}: make harnesses")

ARGUMENTS = [
    ("threads=1", {"batch_size": 1}, "no bundle, expected bundle=DIR"),
    ("bundel=out", {}, "no argument 'bundel'; did you mean 'bundle'?"),
    ("bundle=out", {"batch_size": "4"}, "--batch_size 4: a bundle answers one question at a time"),
    ("bundle=out", {"batch_size": 1, "device": "cuda:0"}, "--device cuda:0: a bundle was exported for its target"),
    ("bundle=nowhere", {"batch_size": 1}, "nowhere"),
]
TASKS = {
    "two": "task 'two', document 0: messages: 2 pictures, this bundle takes 1",
    "beams": "task 'beams', document 0: generation_kwargs: 'num_beams' (4) is supported as 1 only",
    "rounds": "a task of the output_type 'generate_until_multi_round'",
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked, what ``lmmprune eval`` says, and what lmms-eval printed and wrote below ``folder``."""

    bundle: Path
    folder: Path
    rows: list[dict[str, Any]]
    accuracy: float
    predictions: list[str]
    said: dict[str, list[str]]
    requests: float

    def picture(self, row: dict[str, Any]) -> Path:
        return self.folder / row["image"]


def evaluated(bundle: Path, questions: Path, file: Path) -> tuple[float, list[str]]:
    """Return what ``lmmprune eval`` says: the accuracy, and all answers."""
    held = io.StringIO()
    with contextlib.redirect_stdout(held), pytest.raises(SystemExit):
        main(["eval", str(bundle), "--data", str(questions), "--predictions", str(file), "--json"])
    return json.loads(held.getvalue())["accuracy"], [
        json.loads(line)["predicted"] for line in file.read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    folder = tmp_path_factory.mktemp("harness")
    bundle, _ = exported(ratio=0.5)
    questions = hf.write_tasks(folder)
    accuracy, predictions = evaluated(bundle, questions, folder / "predictions.jsonl")
    with sf.serving(f"half={bundle}", "--threads", 1) as server:
        chat = f"model=half,base_url={server.url}/v1,api_key=none,num_cpus=2"
        tasks = ["--include_path", str(folder), "--log_samples", "--tasks"]
        commands = [
            ["--model", "lmmprune", "--model_args", f"bundle={bundle},threads=1", *tasks, "photos,drawn"],
            ["--model", "async_openai", "--model_args", chat, *tasks, "photos"],
        ]
        order = {
            "commands": [[*words, "--output_path", str(folder / words[1])] for words in commands],
            "arguments": [[text, options] for text, options, _ in ARGUMENTS],
            "bundle": str(bundle),
            "folder": str(folder),
            "tasks": list(TASKS),
        }
        (folder / "order.json").write_text(json.dumps(order))
        script = Path(__file__).with_name("ask_lmms_eval.py")
        hf.with_packages(folder, script, folder / "order.json", folder / "answer.json")
        answered = server.metric("lmmprune_queue_seconds_count")
    return Asked(
        bundle=bundle,
        folder=folder,
        rows=[json.loads(line) for line in questions.read_text().splitlines()],
        accuracy=accuracy,
        predictions=predictions,
        said=json.loads((folder / "answer.json").read_text()),
        requests=answered,
    )


@real
@pytest.mark.parametrize("model", ["lmmprune", "async_openai"])
def test_lmms_eval_says_what_eval_says(asked: Asked, model: str) -> None:
    printed = asked.said["commands"][model == "async_openai"]
    assert "Error during evaluation" not in printed
    assert len({row["image"] for row in asked.rows}) == 6
    assert 0 < asked.accuracy < 1, "an equal score says something"
    found = hf.results(asked.folder / model)
    assert found["results"]["photos"]["exact_match,none"] == pytest.approx(asked.accuracy, abs=1e-12)
    answers = [sample["filtered_resps"] for sample in hf.samples(asked.folder / model, "photos")]
    assert answers == asked.predictions
    assert "|photos" in printed.replace(" ", ""), "the table"


@real
def test_answers_count_the_tokens_of_the_decoder(asked: Asked) -> None:
    with lmmprune.load(asked.bundle, threads=1) as model:
        first = asked.rows[0]
        stats = model.ask(asked.picture(first), first["prompt"], max_new_tokens=16).stats
    for name in ("lmmprune", "async_openai"):
        counted = hf.samples(asked.folder / name, "photos")[0]["token_counts"][0]
        assert (counted["input_tokens"], counted["output_tokens"]) == (stats.prompt_tokens, stats.new_tokens)
    assert hf.results(asked.folder / "lmmprune")["throughput"]["avg_image_tokens"] == stats.image_tokens
    assert asked.requests == len(asked.rows)


@real
def test_a_tasks_generation_settings_are_those_of_run(asked: Asked) -> None:
    found = [sample["filtered_resps"] for sample in hf.samples(asked.folder / "lmmprune", "drawn")]
    how: dict[str, Any] = {"temperature": 40, "top_p": 0.9, "seed": 4}
    with lmmprune.load(asked.bundle, threads=1) as model:

        def answers(**options: Any) -> list[str]:
            visual = {row["image"]: model.encode(asked.picture(row)) for row in asked.rows}
            return [model.ask(visual[row["image"]], row["prompt"], **options).text.strip() for row in asked.rows]

        expected = answers(max_new_tokens=3, stop="o", **how)
        assert found == expected
        # Each of them matters to these answers.
        assert expected != answers(max_new_tokens=3, **how)
        assert expected != answers(max_new_tokens=2, stop="o", **how)
        assert expected != answers(max_new_tokens=3, stop="o")


@real
def test_what_a_bundle_cannot_do_is_said(asked: Asked) -> None:
    for said, (*_, words) in zip(asked.said["arguments"], ARGUMENTS, strict=True):
        assert words in said
    for said, words in zip(asked.said["tasks"], TASKS.values(), strict=True):
        assert words in said


@real
def test_vlmevalkits_client_is_answered_as_run_answers(asked: Asked) -> None:
    rows = asked.rows[::12]
    pairs = asked.folder / "pairs.json"
    pairs.write_text(json.dumps([[str(asked.picture(row)), row["prompt"]] for row in rows]))
    script = Path(__file__).with_name("ask_vlmevalkit.py")
    with sf.serving(f"half={asked.bundle}", "--threads", 1, "--allowed-local-media-path", asked.folder) as server:
        words = ["--model", "half", "--base-url", f"{server.url}/v1", "--max-tokens", 16, "--retry", 1]
        done = hf.with_packages(asked.folder, script, pairs, *words)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["of_files"] == asked.predictions[::12]
    with lmmprune.load(asked.bundle, threads=1) as model:
        # It sends small pictures enlarged, and all as JPEG.
        sent = [Image.open(io.BytesIO(base64.b64decode(data))) for data in found["sent"]]
        expected = [
            model.ask(image, row["prompt"], max_new_tokens=16).text for image, row in zip(sent, rows, strict=True)
        ]
    assert {image.format for image in sent} == {"JPEG"}
    assert found["of_data"] == expected


def test_generation_settings() -> None:
    assert read_settings({}) == Settings(max_new_tokens=1024, sampling=Sampling(), stop=())
    nothing = {"until": None, "temperature": None, "top_p": 0, "num_beams": 1, "do_sample": True, "seed": 3}
    assert read_settings(nothing) == read_settings({})
    given = {"max_new_tokens": 5, "until": "x", "temperature": 0.5, "top_p": 0.9, "top_k": -1, "seed": 3}
    assert read_settings(given) == Settings(
        max_new_tokens=5, sampling=Sampling(temperature=0.5, top_p=0.9, seed=3), stop=("x",)
    )
    assert read_settings({"until": ["a", "b"], "image_aspect_ratio": "pad"}).stop == ("a", "b")


def test_draws_without_a_seed_follow_the_one_of_the_run() -> None:
    def seeds() -> list[int | None]:
        random.seed(0)  # as lmms-eval does
        return [read_settings({"temperature": 1}).sampling.seed for _ in range(3)]

    assert seeds() == seeds()
    assert len(set(seeds())) == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"visual_cot": True}, "'visual_cot' (True) is not supported"),
        ({"repetition_penalty": 1.2}, "'repetition_penalty' (1.2) is supported as 1 only"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5, expected a whole number"),
        ({"max_new_tokens": "many"}, "max_new_tokens is 'many', expected a number"),
        ({"temperature": True}, "temperature is True, expected a number"),
        ({"temperature": 1, "top_p": 2}, "top_p is 2"),
    ],
)
def test_settings_that_cannot_be_heeded(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_settings(given)
    assert words in str(caught.value)
