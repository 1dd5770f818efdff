"""The task of docs/guide/judge.md, on pictures of tiny-llava: it asks what its file asks in ``lmmprune eval``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from docs_blocks import blocks_of

from lmmprune.compiler.data.questions import load_questions

HOME = Path(sys.prefix) / "harnesses"
"""The packages of ``harness-requirements.txt``, where they are installed."""
SCENES = range(10, 16)  # six pictures; some answers of a bundle that keeps half of the tokens are wrong

# What some tasks need beside the page's.
_MORE = """

def twice(doc):
    return 2 * pictures(doc)


def text(doc, lmms_eval_specific_kwargs=None, **of_the_round):
    return doc["prompt"]
"""
DRAWN = {"max_new_tokens": 3, "until": ["o"], "temperature": 40, "top_p": 0.9, "seed": 4, "do_sample": True}


def write_tasks(folder: Path) -> Path:
    """Write pictures, ``questions.jsonl``, and tasks that ask them: the page's ``photos``, and others that differ."""
    rows = []
    for question in load_questions("tiny-llava"):
        if int(question.picture) in SCENES:
            name = f"{question.picture}.png"
            question.load().save(folder / name)
            rows.append({"image": name, "prompt": question.prompt, "answer": question.answers[0]})
    questions = folder / "questions.jsonl"
    questions.write_text("\n".join(map(json.dumps, rows)))
    page = Path(__file__).parents[1] / "docs" / "guide" / "judge.md"
    texts = {block.language: block.text for block in blocks_of(page)}
    (folder / "utils.py").write_text(texts["python"] + _MORE)
    _write(folder, "photos", texts["yaml"])
    _write(folder, "drawn", texts["yaml"], generation_kwargs=DRAWN)
    _write(folder, "two", _with_function(texts["yaml"], "doc_to_visual", "twice"))
    _write(folder, "beams", texts["yaml"], generation_kwargs={"num_beams": 4})
    rounds = _with_function(texts["yaml"], "doc_to_text", "text")
    _write(folder, "rounds", rounds, output_type="generate_until_multi_round")
    return questions


def _with_function(task: str, field: str, name: str) -> str:
    return f"{task}\n{field}: !function utils.{name}"


def _write(folder: Path, name: str, task: str, **changes: Any) -> None:
    # Of a field that stands there twice, the last one counts.
    (folder / f"{name}.yaml").write_text(f"{task}\n{yaml.safe_dump({'task': name, **changes})}")


def with_packages(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder with the packages of ``HOME``, without a hub; what they keep stays in the folder."""
    paths = [str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "HF_HOME": str(folder / "hub"),
            "HF_HUB_OFFLINE": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    return done


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    """Return what lmms-eval wrote of each question of a task."""
    file = next(folder.rglob(f"*_samples_{task}.jsonl"))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted(rows, key=lambda row: int(row["doc_id"]))


def results(folder: Path) -> dict[str, Any]:
    """Return what lmms-eval wrote of a run."""
    found: dict[str, Any] = json.loads(next(folder.rglob("*_results.json")).read_text())
    return found
