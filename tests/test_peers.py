"""The script that compares runtimes: its processes do as told, and its ratios are those of the rounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from exports import exported_again

PEERS = Path(__file__).parents[1] / "scripts" / "peers"


@pytest.mark.parametrize(("kind", "target"), [("onnxruntime", "ort-cpu"), ("openvino", "openvino-cpu")])
def test_a_process_does_as_told(kind: str, target: str) -> None:
    path, _ = exported_again(target=target)
    words = [sys.executable, str(PEERS / "workers.py"), kind, str(path), "1"]
    asked = "prefill 90\ndecode 90\ndecode 75\n"
    done = subprocess.run(words, input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, *times = [json.loads(line) for line in done.stdout.splitlines()]
    assert first["loaded"] > 0
    assert len(times) == 3
    assert min(times) > 0


def test_ratios_are_taken_within_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PEERS))
    import table

    times = {
        table.REFERENCE: {"prefill 636": [100.0, 200.0, 50.0]},
        "llama.cpp, Q8_0": {"prefill 636": [200.0, 100.0, 100.0]},
    }
    text = table.report(times, {table.REFERENCE: 1.0, "llama.cpp, Q8_0": 2.0})
    assert "| 8 bits | llama.cpp, Q8_0 | 100.0 (100.0-200.0) | 2.00 | 2.0 |" in text
    assert text.count("\n") == 3
