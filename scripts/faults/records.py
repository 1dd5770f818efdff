"""What commands read beside bundles and checkpoints, damaged: a board's result, a file of options, the environment."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from faults.bundles import TARGET
from faults.command_line import call, fault_of
from faults.command_lines import ODD_WORDS
from faults.damage import ODD, TEXTS, damaged, damaged_bytes
from faults.tally import Row, Rows, while_time_lasts

_OPTIONS = "text = 5\nratio = '0.5'\nmethod = 'fastv'\njson = true\n"


def run(seconds: float, seed: int) -> list[Row]:
    """Let a command read one damaged record after the other."""
    rng, rows = random.Random(seed), Rows("records")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        made = {"--import": json.loads(_result(home).read_text(encoding="utf-8")), **_measured(home)}
        tries = (_import, _card, _options, _variable)
        for number in while_time_lasts(seconds, at_least=8 * len(tries)):
            kind, words, variables = tries[number % len(tries)](rng, home, made)
            with mock.patch.dict(os.environ, variables):
                fault = fault_of(called := call(*words), must_refuse=False)
            rows[kind].count(fault, f"number {number} of this seed, {variables}: {called.code} {called.err[-300:]!r}")
    return rows.list()


Try = tuple[str, list[Any], dict[str, str]]


def _import(rng: random.Random, home: Path, made: dict[str, Any]) -> Try:
    file = _damaged(rng, home / "damaged.json", made["--import"])
    more: list[Any] = rng.choice(([], ["--json"], ["--chart", home / "chart.png", "--force"]))
    return "result.json of a board", ["bench", "--import", file, *more], {}


def _card(rng: random.Random, home: Path, made: dict[str, Any]) -> Try:
    option = rng.choice(("--eval", "--compare", "--bench"))
    file = _damaged(rng, home / "damaged.json", made[option])
    return "what a card tells", ["card", home / "pruned", option, file], {}


def _damaged(rng: random.Random, file: Path, record: Any) -> Path:
    if rng.random() < 0.1:
        file.write_text(rng.choice(TEXTS), encoding="utf-8")
    elif rng.random() < 0.2:
        file.write_bytes(damaged_bytes(json.dumps(record).encode(), rng)[0])
    else:
        file.write_text(json.dumps(damaged({"it": record}, rng)[0].get("it")), encoding="utf-8")
    return file


def _options(rng: random.Random, home: Path, made: dict[str, Any]) -> Try:
    file = home / "options.toml"
    if rng.random() < 0.5:
        file.write_bytes(damaged_bytes(_OPTIONS.encode(), rng)[0])
    else:
        name = rng.choice(("text", "ratio", "method", "json", "layers", "model", "x" * 300, "config", "'a\\u0000'"))
        value = rng.choice(
            (*(json.dumps(one) for one in ODD), "[" * 5000, "nan", "9" * 5000, "1979-05-27", "{a.b = 1}")
        )
        file.write_text(f"{name} = {value}\n", encoding="utf-8", errors="surrogatepass")
    return "a file of options", ["flops", "--model", "tiny-llava", "--keep", "9", "--config", file], {}


def _variable(rng: random.Random, home: Path, made: dict[str, Any]) -> Try:
    name = rng.choice(("TEXT", "RATIO", "METHOD", "LAYERS", "JSON", "GRAPH", "MODEL", "X", "KEEP", ""))
    value = rng.choice([word for word in ODD_WORDS if word.isprintable()])
    words = ["flops", "--model", "tiny-llava", "--keep", "9"]
    if name == "GRAPH":  # which is right, and traces a model
        value = "x"
    return "a variable of the environment", words, {f"LMMPRUNE_FLOPS_{name}": value}


def _result(home: Path) -> Path:
    """Let a plan's script measure with a stand-in for ``trtexec``."""
    import fake_trtexec
    import runtime_fixtures as fx

    from lmmprune.compiler.deploy.write_plan import SCRIPT, write_plan

    paths = [
        fx.make_bundle(home / name, keep=keep, dtype="float16", target=TARGET).path
        for name, keep in (("base", 16), ("pruned", 4))
    ]
    plan = write_plan(paths, TARGET, home / "plan").folder
    program = home / "trtexec"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {fake_trtexec.__file__} "$@"\n')
    program.chmod(0o755)
    given = ["-r", "2", "-s", "0", "-o", str(home / "result.json")]
    environment = {**os.environ, "TRTEXEC": str(program)}
    subprocess.run(["sh", str(plan / SCRIPT), *given], env=environment, check=True, capture_output=True)
    return home / "result.json"


def _measured(home: Path) -> dict[str, Any]:
    """Measure a bundle as ``card`` wants to be told of it."""
    import runtime_fixtures as fx

    base, pruned = (fx.make_bundle(home / name, keep=keep).path for name, keep in (("base", 16), ("pruned", 4)))
    picture = fx.save_picture(home / "p.png", 3)
    questions = home / "asked.jsonl"
    questions.write_text(json.dumps({"image": picture.name, "prompt": "hi", "answer": "x"}) + "\n", encoding="utf-8")
    asked, short = ["--data", questions, "--max-new-tokens", "2", "--json"], ["--rounds", "2"]
    shown = ["--image", picture, "--prompt", "hi", "--new-tokens", "2", "--no-memory", "--json"]
    commands: dict[str, list[Any]] = {
        "--eval": ["eval", pruned, *asked],
        "--compare": ["compare", base, pruned, *asked, *short],
        "--bench": ["bench", base, pruned, *shown, *short],
    }
    return {name: json.loads(call(*words).out) for name, words in commands.items()}
