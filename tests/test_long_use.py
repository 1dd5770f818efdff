"""A process that answers for long takes no more memory than one that has answered for a while."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import runtime_fixtures as fx

SCRIPT = Path(__file__).parents[1] / "scripts" / "long_use.py"
# Each in a process of its own: what tests before it have taken would hide a few MiB.
LEAKS = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import lmmprune, long_use
kept, answer = [], lmmprune.Model.answer
lmmprune.Model.answer = lambda *given, **options: kept.append(bytearray(2**19)) or answer(*given, **options)
long_use.main()
"""


def run(*words: object) -> tuple[int, list[list[str]]]:
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.returncode, [line.split(", ") for line in done.stdout.splitlines()[1:-1]]


def test_memory_stays_flat(tmp_path: Path) -> None:
    fx.make_bundle(tmp_path / "out", keep=4)
    code, rows = run(SCRIPT, tmp_path / "out", "--answers", 600, "--every", 600)
    assert code == 0, rows
    (_, _, early), (_, _, late) = rows
    # An object per answer would be 540 more.
    assert int(late) - int(early) < 100


def test_what_is_kept_shows(tmp_path: Path) -> None:
    fx.make_bundle(tmp_path / "out", keep=4)
    code, rows = run("-c", LEAKS, SCRIPT.parent, tmp_path / "out", "--answers", 100, "--every", 50)
    assert code == 1
    assert [number for number, *_ in rows] == ["10", "50", "100"]
