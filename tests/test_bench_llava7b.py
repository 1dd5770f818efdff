"""The script that measures whole models, on small ones: processes in turns, a table with its facts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from exports import exported_again

from lmmprune.models.registry import tiny_llava_dir

SCRIPT = Path(__file__).parents[1] / "scripts" / "llava7b" / "bench_llava7b.py"


def test_three_bundles_in_turns(tmp_path: Path) -> None:
    calibrated = {"int8": True, "calibration_samples": 2}
    variants = {"baseline": {}, "half": {"ratio": 0.5}, "fixed": {"ratio": 0.9, "static_cache": 64}}
    for name, options in variants.items():
        path, _ = exported_again(**options, **calibrated)
        (tmp_path / name).symlink_to(path)
    picture = tiny_llava_dir() / "examples" / "scene_003.png"
    words = [*(tmp_path / name for name in variants), "--image", picture, "--tokens", 3, "--answers", 1, "--rounds", 2]
    command = [sys.executable, str(SCRIPT), *map(str, words), "-o", str(tmp_path / "table")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = [line.split(":")[0] for line in done.stderr.splitlines()]
    assert said == [*variants, *variants], "in turns"
    rows = json.loads((tmp_path / "table.json").read_text())["result"]["rows"]
    assert [row["tokens"] for row in rows] == ["144 -> 144", "144 -> 72", "144 -> 14"]
    assert [len(row["answers"]) for row in rows] == [2, 2, 2]
    assert rows[0]["flops"] > rows[1]["flops"] > rows[2]["flops"]
    assert all(0 < answer["prefill"] < answer["ttft"] for row in rows for answer in row["answers"])
    text = (tmp_path / "table.md").read_text()
    assert "| bundle | tokens |" in text
    assert "2 processes per bundle in turns, 1 answers of 3 tokens each" in text
