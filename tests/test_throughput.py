"""The script that measures answers per second, on bundles that are there already."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from exports import exported_again

from lmmprune.models.registry import tiny_llava_dir

SCRIPT = Path(__file__).parents[1] / "scripts" / "throughput.py"


def test_a_pair_of_each_batch(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for name, options in (("full", {}), ("pruned", {"ratio": 0.5})):
        (work / f"{name}-3").symlink_to(exported_again(batch=3, **options)[0])
    picture = tiny_llava_dir() / "examples" / "scene_003.png"
    words = ["--batch", 3, "--work", work, "--image", picture, "--rounds", 2, "--new-tokens", 2, "--threads", 1]
    command = [sys.executable, str(SCRIPT), *map(str, words), "-o", str(tmp_path / "found")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [found] = json.loads((tmp_path / "found.json").read_text())["result"]
    full, pruned = found["rows"]
    assert [row["batch"] for row in found["rows"]] == [3, 3]
    flops = json.loads((work / "pruned-3" / "manifest.json").read_text())["flops"]
    # One step behind the prefill: a token's part of it.
    before, after = (
        flops["vision"][side] + flops["prefill"][side] * (1 + 1 / (60 + tokens))
        for side, tokens in (("before", 144), ("after", 72))
    )
    assert found["flops_ratio"] == pytest.approx(before / after)
    gain = pruned["throughput"]["ratio"]["value"]
    lines = (tmp_path / "found.md").read_text().splitlines()
    [line] = [line for line in lines if "144 -> 72" in line and line.startswith("| 3")]
    assert line.split("|")[-2].strip() == f"{gain / found['flops_ratio']:.2f}"
    assert full["throughput"]["answers"]["median"] > 0
