"""A task of lmms-eval and a file of questions for ``lmmprune eval`` that ask the same, about tiny-llava's scenes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from lmmprune.compiler.data.questions import load_questions

HOME = Path(sys.prefix) / "harnesses"
"""The packages of ``harness-requirements.txt``, where they are installed."""
SCENES = range(10, 16)  # six pictures; some answers of a bundle that keeps half of the tokens are wrong

_UTILS = """
from pathlib import Path
from PIL import Image

def pictures(doc):
    return [Image.open(Path(__file__).parent / doc["image"])]

def twice(doc):
    return 2 * pictures(doc)

def text(doc, lmms_eval_specific_kwargs=None, **round):
    return doc["prompt"]
"""
DRAWN = {"max_new_tokens": 3, "until": ["o"], "temperature": 40, "top_p": 0.9, "seed": 4, "do_sample": True}


def write_tasks(folder: Path) -> Path:
    """Write pictures, ``questions.jsonl``, and tasks that ask them: ``scenes``, and others that differ in one thing."""
    rows = []
    for question in load_questions("tiny-llava"):
        if int(question.picture) in SCENES:
            name = f"{question.picture}.png"
            question.load().save(folder / name)
            rows.append({"image": name, "prompt": question.prompt, "answer": question.answers[0]})
    questions = folder / "questions.jsonl"
    questions.write_text("\n".join(map(json.dumps, rows)))
    (folder / "utils.py").write_text(_UTILS)
    _write(folder, "scenes")
    _write(folder, "drawn", generation_kwargs=DRAWN)
    _write(folder, "two", doc_to_visual="!function utils.twice")
    _write(folder, "beams", generation_kwargs={"num_beams": 4})
    _write(folder, "rounds", output_type="generate_until_multi_round", doc_to_text="!function utils.text")
    return questions


def _write(folder: Path, name: str, **changes: Any) -> None:
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_visual": "!function utils.pictures",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"max_new_tokens": 16, "temperature": 0},
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "ignore_case": True,
                "ignore_punctuation": True,
            }
        ],
        **changes,
    }
    # A function is a tag of YAML's, no text.
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task).replace("'!function utils.", "!function 'utils."))


def with_packages(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run Python with the packages of ``HOME``, without a hub; what they keep goes into a folder."""
    paths = [str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "HF_HOME": str(folder / "hub"),
            "HF_HUB_OFFLINE": "1",
        },
    )


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    """Return what lmms-eval wrote of each question of a task."""
    file = next(folder.rglob(f"*_samples_{task}.jsonl"))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted(rows, key=lambda row: int(row["doc_id"]))


def results(folder: Path) -> dict[str, Any]:
    """Return what lmms-eval wrote of a run."""
    found: dict[str, Any] = json.loads(next(folder.rglob("*_results.json")).read_text())
    return found
