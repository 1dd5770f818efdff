"""Commands in surroundings that fail them: streams, locales, folders, limits, signals."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from faults.bundles import BOARD, TARGET
from faults.tally import HALF, SILENT, TRACEBACK, Row, Rows, while_time_lasts

_STREAMS = {
    "stdout on a full device": (">/dev/full", "must fail"),
    "stdout closed": (">&-", ""),
    "stdout and stderr closed": (">&- 2>&-", ""),
    "stdin closed": ("<&-", ""),
    "a reader who has gone": ("| head -c 1 >/dev/null", ""),
}
_VARIABLES = {
    "no HOME": {"HOME": "/nonexistent"},
    "no TMPDIR": {"TMPDIR": "/nonexistent"},
    "nothing to write to": {"HOME": "/proc", "TMPDIR": "/proc", "LMMPRUNE_CACHE": "/proc/x", "XDG_CACHE_HOME": "/proc"},
    "an ASCII locale": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "output in ASCII": {"PYTHONIOENCODING": "ascii"},
    "output in Latin 1": {"PYTHONIOENCODING": "latin-1"},
    "a dumb terminal": {"TERM": "dumb", "COLUMNS": "1"},
}
_LIMITS = {"files of 0 bytes at most": "ulimit -f 0", "12 open files": "ulimit -n 12"}


def run(seconds: float, seed: int) -> list[Row]:
    """Draw a command for each surrounding in turn, until the time is over."""
    import runtime_fixtures as fx

    from lmmprune.compiler.bundle.workplace import remove

    draw, rows = random.Random(seed), Rows("environments")
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    for name in ("out", "dütt"):
        fx.make_bundle(root / name, keep=4)
    fx.make_bundle(root / "board", keep=4, dtype="float16", target=TARGET)
    fx.save_picture(root / "p.png", 3)
    (root / "q.jsonl").write_text(json.dumps({"image": str(root / "p.png"), "prompt": "hi", "answer": "x"}) + "\n")
    surroundings = [*_STREAMS, *_VARIABLES, *_LIMITS, "a folder without permission", "SIGINT", "SIGTERM"]
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        surroundings.remove("a folder without permission")
    for number in while_time_lasts(seconds, at_least=len(surroundings)):
        kind = surroundings[number % len(surroundings)]
        words = _command(root, draw)
        before = _files(root)
        fault, said = _try(root, kind, words, draw)
        left = sorted(name for name in _files(root) - before if not name.startswith(("x.png", "x.jsonl")))
        if fault is None and left:
            fault, said = HALF, f"left {left}"
        rows[kind].count(fault, f"{shlex.join(words)}: {said}")
        for name in ("x.png", "x.jsonl", *left):
            if os.path.lexists(root / name):
                remove(root / name)
    shutil.rmtree(root)
    return rows.list()


def _command(root: Path, draw: random.Random) -> list[str]:
    bundle = str(root / draw.choice(["out", "dütt"]))
    picture = str(root / "p.png")
    predictions = ["--predictions", str(root / "x.jsonl")]
    return draw.choice(
        [
            ["run", bundle, "--image", picture, "--prompt", draw.choice(["hi", "grün?"]), "--max-new-tokens", "4"],
            ["inspect", bundle],
            ["flops", bundle, "--json"],
            ["show", bundle, "--image", picture, "-o", str(root / "x.png")],
            ["eval", bundle, "--data", str(root / "q.jsonl"), "--max-new-tokens", "2", *predictions],
            ["compare", bundle, bundle, "--data", str(root / "q.jsonl"), "--max-new-tokens", "2", "--rounds", "2"],
            ["build", bundle, "--triton", str(root / "x.png")],
            ["deploy", str(root / "board"), "--for", BOARD, "-o", str(root / "x.png")],
            ["targets"],
            ["methods", "--json"],
        ]
    )


def _try(root: Path, kind: str, words: list[str], draw: random.Random) -> tuple[str | None, str]:
    command = f"{shlex.quote(sys.executable)} -m lmmprune {shlex.join(words)}"
    environment, must_fail = dict(os.environ), False
    if kind in _STREAMS:
        command, must_fail = f"{command} {_STREAMS[kind][0]}", bool(_STREAMS[kind][1])
    elif kind in _VARIABLES:
        environment |= _VARIABLES[kind]
    elif kind in _LIMITS:
        command = f"{_LIMITS[kind]}; {command}"
    elif kind == "a folder without permission":
        command = f"setpriv --reuid 65534 --clear-groups {command}"
        os.chmod(root, 0o755)
        closed = draw.choice([root, root / "out"])
        os.chmod(closed, draw.choice([0o000, 0o444]))
        try:
            return _judge(subprocess.run(["sh", "-c", command], capture_output=True, check=False), must_fail=False)
        finally:
            os.chmod(closed, 0o755)
    else:
        return _signalled(words, getattr(signal, kind), draw)
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False, env=environment)
    return _judge(done, must_fail=must_fail)


def _signalled(words: list[str], number: int, draw: random.Random) -> tuple[str | None, str]:
    with subprocess.Popen(
        [sys.executable, "-m", "lmmprune", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        # Before 0.1 s Python itself is starting, and nobody could answer.
        time.sleep(draw.uniform(0.15, 2.5))
        process.send_signal(number)
        out, err = process.communicate()
    done = subprocess.CompletedProcess(words, process.returncode, out, err)
    # The last two, which a shell says as 130 and 143: before the command began, or when all was done.
    if process.returncode in (0, 130, 143, -signal.SIGINT, -signal.SIGTERM):
        return (TRACEBACK, err.decode()[-300:]) if b"Traceback" in err else (None, "")
    return _judge(done, must_fail=False)


def _judge(done: subprocess.CompletedProcess[bytes], *, must_fail: bool) -> tuple[str | None, str]:
    said = done.stderr.decode(errors="replace")
    words = f"exit {done.returncode}: {said[-250:]}"
    if "Traceback" in said or "Exception ignored" in said or done.returncode not in (0, 1, 2):
        return TRACEBACK, words
    if done.returncode == 1 and "a mistake of lmmprune" in said:
        return TRACEBACK, words
    if must_fail and done.returncode == 0:
        return SILENT, words
    return None, ""


def _files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}
