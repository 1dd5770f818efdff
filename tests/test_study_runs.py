"""Real studies of tiny-llava: killed and gone on with, on this machine and on a Ray cluster, and refused requests."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import study_fixtures as fx

import lmmprune
from lmmprune.compiler.cli import main

ROOT = tempfile.TemporaryDirectory(prefix="lmmprune-study-")
SHORT = ("--limit", "20", "--calib-samples", "4", "--rounds", "3", "--new-tokens", "2")
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(cli: Cli) -> Cli:
    return functools.partial(cli, "study", "--model", "tiny-llava")


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lmmprune.compiler.cli", "study", "--model", "tiny-llava", "-o", str(folder)]
    return subprocess.Popen([*command, *SHORT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(folder: Path) -> dict[str, int]:
    """Return the finished cells with the time of their results, in ns."""
    return {file.parent.name: file.stat().st_mtime_ns for file in folder.glob("cells/*/result.json")}


def wait_for(what: Callable[[], Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def children(pid: int) -> set[int]:
    """Return the processes below one, those of all its threads."""
    lists = [file.read_text().split() for file in Path("/proc", str(pid), "task").glob("*/children")]
    return {int(child) for each in lists for child in each}


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@functools.cache
def study() -> tuple[Path, dict[str, int], dict[str, Any]]:
    """Kill a study after some cells, go on with more methods; return folder, cells before the kill, what it said."""
    folder = Path(ROOT.name) / "study"
    killed = start(folder, "--workers", "1", "--methods", "random,freepruner", "--ratios", "0,0.5", "--int8")
    wait_for(lambda: len(finished(folder)) >= 3 or killed.poll() is not None, 400)
    assert killed.poll() is None, "it was to be killed while it runs"
    workers = children(killed.pid)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    # Orphans would go on writing.
    wait_for(lambda: not any(map(alive, workers)), 10)
    assert workers
    before = finished(folder)
    again = start(
        folder,
        "--workers",
        "1",
        "--methods",
        "random,freepruner,pyramiddrop",
        "--ratios",
        "0,0.5,0.9",
        "--int8",
        "--json",
    )
    out, err = again.communicate(timeout=900)
    assert again.returncode == 0, err
    # A slow machine gets a line on how far it is; the last step is one of its own.
    told = r"report|.*: \d+ of \d+(, about \d+ (s|min) left)?"
    others = [line for line in err.splitlines() if not re.fullmatch(told, line)]
    assert others == [], "no warnings, no leaked semaphores"
    return folder, before, json.loads(out)


def test_a_killed_study_goes_on_and_keeps_what_was_finished() -> None:
    folder, before, said = study()
    after = finished(folder)
    assert 3 <= len(before) < len(after) == 14
    assert {name: after[name] for name in before} == before
    assert said["reused"] == len(before)
    assert not list(folder.rglob("*.tmp"))


def test_what_a_study_says() -> None:
    folder, _, said = study()
    cells = {cell["cell"]: cell for cell in said["cells"]}
    assert len(cells) == 14
    refused = {name for name, cell in cells.items() if cell["refused"]}
    assert refused == {"pyramiddrop-0.9", "pyramiddrop-0.9-int8"}
    assert "the nearest is" in cells["pyramiddrop-0.9"]["refused"]
    for name in cells.keys() - refused:
        cell = cells[name]
        assert (cell["questions"], cell["checks_failed"]) == (20, "")
        assert cell["accuracy_low"] <= cell["accuracy"] <= cell["accuracy_high"]
        assert cell["ttft_ms"] > 0
        assert cell["ttft_ms_speedup_low"] <= cell["ttft_ms_speedup_high"]
    assert cells["unpruned"]["ttft_ms_speedup"] == cells["unpruned"]["retention"] == 1
    assert cells["unpruned-int8"]["bytes"] < cells["unpruned"]["bytes"] / 2
    assert cells["random-0.5"]["average_tokens"] == 72
    # A constant selection keeps the same in both precisions.
    assert cells["random-0.5-int8"]["iou_vision_output_mean"] == 1
    assert 0 < cells["freepruner-0.5-int8"]["iou_vision_output_mean"] <= 1
    assert "iou_llm_input_2_mean" in cells["pyramiddrop-0.5-int8"]
    record = json.loads((folder / "study.json").read_text())
    assert record["identity"] == said["study"]
    assert record["request"]["methods"] == ["random", "freepruner", "pyramiddrop"]


def test_answers_are_those_of_eval() -> None:
    from lmmprune.compiler.bundle.bundle import Bundle
    from lmmprune.compiler.data.questions import load_questions
    from lmmprune.compiler.measure.evaluate import evaluate
    from lmmprune.compiler.runtime.runtime import Runtime

    folder, *_ = study()
    runtime = Runtime(Bundle.open(folder / "bundles" / "freepruner-0.5"), threads=1)
    predictions = evaluate(runtime, load_questions("tiny-llava")[:20]).predictions
    result = json.loads((folder / "cells" / "freepruner-0.5" / "result.json").read_text())
    assert result["correct"] == "".join(str(int(one.correct)) for one in predictions)
    assert result["first_word"] == "".join(str(int(one.first_word)) for one in predictions)


def test_the_real_report_in_a_browser(tmp_path: Path) -> None:
    folder, _, said = study()
    dom, console = fx.chromium(folder / "report.html", tmp_path)
    assert console == []
    body = dom.partition('<table id="accuracy">')[2].partition("</table>")[0]
    assert body.count('<th scope="row">') == 12
    assert "FAILED" not in said["summary"]


def test_nothing_is_done_twice(cli: Cli) -> None:
    folder, *_ = study()
    before = {path: path.stat().st_mtime_ns for path in (*folder.glob("cells/*/*"), *folder.glob("timing/group*"))}
    arguments = ("--methods", "random,freepruner,pyramiddrop", "--ratios", "0,0.5,0.9", "--int8", "-o", folder, *SHORT)
    code, out, err = cli(*arguments)
    assert code == 0
    assert "14 of 14 variants had been measured before" in err
    assert "refused" in out
    after = {path: path.stat().st_mtime_ns for path in (*folder.glob("cells/*/*"), *folder.glob("timing/group*"))}
    assert after == before
    # Other questions are another study.
    code, _, err = cli(*("21" if word == "20" else word for word in arguments))
    assert code == 2
    assert "differs in questions (there 20, asked 21)" in err


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Ray cluster of two nodes with a worker each, on this machine; the address of its head."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    running = Cluster(initialize_head=True, head_node_args=node)
    try:
        running.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        running.wait_for_nodes()
        yield running.address
    finally:
        running.shutdown()


def test_on_a_ray_cluster_an_earlier_study_is_extended(cli: Cli, cluster: str, tmp_path: Path) -> None:
    earlier, *_ = study()
    folder = tmp_path / "study"
    shutil.copytree(earlier, folder, ignore=shutil.ignore_patterns("bundles"))
    before = finished(folder)
    arguments = ("--methods", "random,uniform,cls", "--ratios", "0.5", "-o", folder, *SHORT, "--discard-bundles")
    code, out, err = cli(*arguments, "--ray", cluster, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["reused"] == 2
    assert {cell["cell"] for cell in said["cells"]} == {"unpruned", "random-0.5", "uniform-0.5", "cls-0.5"}
    after = finished(folder)
    assert {name: after[name] for name in before} == before
    new = [json.loads((folder / "cells" / name / "result.json").read_text()) for name in ("uniform-0.5", "cls-0.5")]
    # Timed beside the unpruned model, whose bundle was made again.
    assert all(cell["ttft_ms"] > 0 for cell in said["cells"])
    assert len({result["worker"] for result in new}) == 2, "both workers had a cell"
    assert not (folder / "bundles").exists()
    check_tuning_on_ray(cluster, tmp_path / "tuned")


def check_tuning_on_ray(cluster: str, out: Path) -> None:
    """A run of ``tune`` on the same cluster, which takes seconds to start, ends as one on this machine does."""
    calib = Path("models/tiny_llava/calib/calib.jsonl")
    lmmprune.tune(
        "tiny-llava",
        out,
        calib,
        max_kl=10,
        limit=8,
        methods=["cls", "random"],
        ratios=[0.5],
        positions=["original"],
        search=False,
        rounds=2,
        ray=cluster,
    )
    cells = [json.loads((out / "cells" / f"{name}-50.json").read_text()) for name in ("cls", "random")]
    assert all(len(cell["tuning"]["kl"]) == 4 for cell in cells)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "freeprunner"), "no method 'freeprunner'; did you mean 'freepruner'?"),
        (("--methods", ","), "--methods is empty"),
        (("--ratios", "0,1.5"), "0 <= ratio < 1"),
        (("--ratios", "half"), "--ratios half: expected numbers"),
        (("--data", "none.jsonl"), "there is no 'none.jsonl'"),
        (("--data", "empty.jsonl"), "holds no questions"),
        (("--target", "tensorrt-rtx"), "tensorrt-rtx"),
        (("--ray", "127.0.0.1:9"), "no Ray cluster answers there"),
        (("--ray", "nowhere"), "expected host:port"),
        (("--calib", "nowhere"), "--calib"),
        (("-o", "notes"), "isn't a study"),
    ],
)
def test_mistakes_are_one_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").touch()
    Path("notes").mkdir()
    Path("notes/notes.txt").touch()
    where = () if "-o" in arguments else ("-o", "out")
    code, out, err = cli(*where, *arguments, "--limit", 2)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("out/cells").exists()


def test_ray_that_is_not_installed(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = cli("-o", tmp_path / "out", "--ray", "auto")
    assert code == 2
    assert "pip install 'lmmprune[ray]'" in err


def test_another_model_needs_questions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["study", "--model", "llava-1.5-7b", "-o", os.devnull])
    assert caught.value.code == 2
    assert "give --data" in capsys.readouterr().err
