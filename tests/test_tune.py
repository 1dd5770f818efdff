"""Tuning: what is dropped, the front and its knee, what is refused, and a run that is killed and goes on."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmmprune.compiler.data.questions import load_examples
from lmmprune.compiler.export.request import Request
from lmmprune.compiler.measure.statistics import Estimate
from lmmprune.compiler.tune.budget import Budget
from lmmprune.compiler.tune.candidate import Candidate, candidates
from lmmprune.compiler.tune.choose import Finalist, choose
from lmmprune.compiler.tune.examples import split
from lmmprune.compiler.tune.race import Runner, front, knee, rungs, survivors
from lmmprune.errors import InputError

CALIB = Path(__file__).resolve().parent.parent / "models" / "tiny_llava" / "calib" / "calib.jsonl"
TUNE = ("tune", "--model", "tiny-llava")
RNG = np.random.default_rng(5)


def test_samples_grow_fourfold() -> None:
    assert rungs(7) == [7]
    assert rungs(16) == [16]
    assert rungs(1000) == [16, 64, 256, 1000]


def test_a_candidate_goes_only_when_its_interval_says_so() -> None:
    pictures = [str(number) for number in range(200)]
    noise = RNG.normal(0, 0.1, 200)
    losses = np.stack([base + noise for base in (0.5, 0.6, 2.0, 0.5, 0.5 + 0.001)])
    losses[4] += RNG.normal(0, 1, 200)
    names = ("cheap", "dearer and worse", "beyond", "dear and alike", "perhaps worse")
    groups = ("float", "float", "int8", "float", "float")
    costs = (1.0, 2.0, 1.0, 2.0, 3.0)
    runners = [
        Runner(name=name, cost=cost, group=group) for name, cost, group in zip(names, costs, groups, strict=True)
    ]
    found = survivors(runners, losses, pictures, 1.0)
    assert {name for name, why in found.items() if why} == {"dearer and worse", "beyond"}
    assert found["dearer and worse"] == "loses more than cheap, which costs no more"
    assert "1 are allowed" in str(found["beyond"])
    assert survivors(runners, losses, pictures, None)["beyond"] is None


def test_front_and_knee() -> None:
    costs, losses = [1.0, 0.5, 0.75, 0.8, 0.5], [0.0, 9.0, 1.0, 5.0, 10.0]
    best = front(costs, losses)
    assert best == [1, 2, 0]
    assert best[knee([costs[place] for place in best], [losses[place] for place in best])] == 2
    assert knee([1.0], [3.0]) == 0


def test_equal_losses_are_told_apart_by_divergence() -> None:
    def finalist(name: str, kl: float, ttft: float) -> Finalist:
        at = [Estimate(value=value, low=value, high=value) for value in (kl, 0.0, ttft)]
        more: dict[str, Any] = {"bytes": 1, "flops": 1.0, "tuned_loss": 0.0, "ttft_ms": 1.0, "schedule": {}}
        return Finalist(
            candidate=Candidate(), label=name, tokens=1, command="", measure="points", **more,
            kl=at[0], points=at[1], ttft=at[2], ms_per_token=at[2],
        )  # fmt: skip

    found = choose([finalist("fast", 0.2, 0.5), finalist("alike", 0.1, 0.7)], Budget(kind="ttft", value=0.8))
    assert found.fastest is not None
    assert found.faithful is not None
    assert (found.fastest.label, found.faithful.label) == ("fast", "alike")


def test_candidates_are_told_apart_and_say_their_command() -> None:
    found = candidates(["fastv", "cls"], [0.5, 0.3], ["original", "contiguous"], "auto")
    assert len({one.name for one in found}) == len(found)
    assert all(one.name == Path(one.name).name for one in found)
    one = Candidate(method="fastv", ratio=0.5, options=(("layer", "16"),), positions="contiguous", int8="auto")
    command = one.command(Request(model="tiny-llava", output=Path("x")))
    assert command == (
        "lmmprune export --model tiny-llava --method fastv --ratio 0.5 --set layer=16 --positions contiguous --int8"
        " --int8-policy auto -o out"
    )


def test_no_picture_decides_and_is_reported_on() -> None:
    examples = load_examples(str(CALIB))
    tuning, final = split(examples, None)
    assert len(tuning) + len(final) == len(examples)
    assert not {one.picture for one in tuning} & {one.picture for one in final}
    with pytest.raises(InputError, match="1 picture in --data"):
        split(examples[:1], None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no budget: give one of --max-loss"),
        (("--max-loss", 1, "--flops", 0.5), "--max-loss and --flops: give one of"),
        (("--ttft", 0), "--ttft 0: give a number above 0"),
        (("--max-kl", -1), "--max-kl -1: give a number 0 or more"),
        (("--max-kl", 1, "--methods", "nobody"), "no method 'nobody'"),
        (("--max-kl", 1, "--ratios", "1.5"), "--ratios 1.5: give fractions"),
        (("--max-kl", 1, "--positions", "new"), "--positions new: expected original or contiguous"),
        (("--max-kl", 1, "--int8-policy", "auto"), "--int8-policy says how to quantize: add --int8"),
    ],
)
def test_bad_input(options: tuple[Any, ...], message: str, tmp_path: Path, refusal: Callable[..., str]) -> None:
    assert message in refusal(*TUNE, "--data", CALIB, *options, "-o", tmp_path / "tuned")


def test_answers_are_missing_where_they_are_asked_for(tmp_path: Path, refusal: Callable[..., str]) -> None:
    pictures = ("--data", CALIB.parent, "--prompt", "how many?")
    assert "--max-loss counts right answers" in refusal(*TUNE, *pictures, "--max-loss", 1, "-o", tmp_path / "tuned")


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    line = [sys.executable, "-m", "lmmprune", *TUNE, "--data", str(CALIB), "--limit", "8", "--max-kl", "10"]
    line += ["--methods", "cls", "--ratios", "0.25,0.5", "--positions", "original", "--rounds", "2", "--no-search"]
    line += ["--threads", "1", "-o", str(out)]
    first = out / "cells" / "cls-25.json"
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (first.is_file() and json.loads(first.read_text())["tuning"]["kl"]):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    _, told = process.communicate()
    assert first.is_file(), told
    assert not (out / "report.html").exists()
    manifest = out / "bundles" / "cls-25" / "manifest.json"
    measured = json.loads(first.read_text())["tuning"], manifest.stat().st_mtime_ns

    done = subprocess.run(line, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert json.loads(first.read_text())["tuning"] == measured[0]
    assert manifest.stat().st_mtime_ns == measured[1]
    assert "lmmprune export --model tiny-llava --method cls" in done.stdout
    rows = json.loads((out / "front.json").read_text())["finalists"]
    assert {row["name"] for row in rows} == {"cls-25", "cls-50"}
    assert all((out / "bundles" / row["name"]).is_dir() for row in rows)

    tight = subprocess.run(
        [*line[: line.index("10")], "1e-9", *line[line.index("10") + 1 :]], capture_output=True, text=True
    )
    assert tight.returncode == 2
    assert "which differs in budget" in tight.stderr


LONGEST = """
from lmmprune import Method

class Longest(Method):
    "Keep the longest patches."
    name = "longest"
    reference = "an example"
    exactness = "exact"

    def filter(self, at):
        return at.b.op("ReduceL2", at.visual, [2], keepdims=0)
"""


def test_workers_find_what_one_process_finds(tmp_path: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    own = tmp_path / "longest.py"
    own.write_text(LONGEST, encoding="utf-8")
    line = [*TUNE, "--data", CALIB, "--limit", 8, "--max-kl", 10, "--methods", "cls", "--method-file", own]
    line += ["--ratios", "0.5", "--positions", "original", "--rounds", 2, "--no-search", "--threads", 1]
    found = {}
    for workers in (1, 2):
        out = tmp_path / str(workers)
        status, _, err = cli(*line, "--workers", workers, "-o", out)
        assert status == 0, err
        cells = {file.stem: json.loads(file.read_text()) for file in (out / "cells").iterdir()}
        assert set(cells) == {"unpruned", "cls-50", "longest-50"}
        found[workers] = {name: (cell["tuning"], cell["heldout"], cell["flops"]) for name, cell in cells.items()}
        commands = [row["command"] for row in json.loads((out / "front.json").read_text())["finalists"]]
        assert f"--method longest --method-file {own}" in " ".join(commands)
    assert found[1] == found[2]
    own.write_text(LONGEST.replace("ReduceL2", "ReduceL1"), encoding="utf-8")
    status, _, err = cli(*line, "-o", tmp_path / "1")
    assert status == 2
    assert "which differs in code of longest" in err


def test_a_schedule_is_searched_for_where_a_candidate_cuts_in_the_decoder(
    tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    """One of dart's forms cuts in front of the decoder and takes fewest FLOPs: no schedule can be made of that one."""
    out = tmp_path / "tuned"
    line = [*TUNE, "--data", CALIB, "--limit", 8, "--max-kl", 10, "--methods", "dart", "--ratios", "0.25"]
    status, _, err = cli(*line, "--positions", "original", "--rounds", 2, "--threads", 1, "-o", out)
    assert status == 0, err
    rows = json.loads((out / "front.json").read_text())["finalists"]
    (found,) = [row for row in rows if "--schedule" in row["command"]]
    counts = json.loads(found["schedule"])
    assert set(counts) <= {"llm_input_1", "llm_input_2", "llm_input_3"}
    assert counts["llm_input_1"] < 144
    assert found["method"] == "dart"
    assert found["options"] == ""
    file = Path(shlex.split(found["command"])[shlex.split(found["command"]).index("--schedule") + 1])
    assert json.loads(file.read_text()) == counts


@pytest.mark.parametrize(
    ("budget", "nearest"),
    [
        (("--flops", 0.01), r"none of 2 candidates comes near; the nearest is cls 90 % with 0\.6\d* of the FLOPs"),
        (("--ttft-ms", 1e-6), r"the nearest is cls \d0 % with 0\.\d+ of the FLOPs, \d+(\.\d+)? ms to the first token"),
    ],
    ids=["flops", "ttft"],
)
def test_a_budget_out_of_reach_names_the_nearest(
    budget: tuple[object, ...], nearest: str, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    line = [*TUNE, "--data", CALIB, "--limit", 4, *budget, "--methods", "cls", "--ratios", "0.5,0.9"]
    status, _, err = cli(*line, "--positions", "original", "--no-search", "--threads", 1, "-o", tmp_path / "tuned")
    assert status == 2
    assert re.search(nearest, err), err
    assert len(err.strip().splitlines()[-1]) <= 400
