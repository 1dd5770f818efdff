"""Command lines with absurd numbers, names and texts, and the files that commands read, damaged."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click

from faults.command_line import call, fault_of
from faults.damage import TEXTS, damaged, damaged_bytes
from faults.tally import Row, Rows, while_time_lasts

ODD_WORDS = (
    *("", " ", "0", "-1", "1.5", "nan", "inf", "1e999", "٣", "1_0", "9" * 5000, "-" + "9" * 30, "1000000", "0x10"),
    *("x" * 300, "x" * 5000, "a\0b", "\ud800", "\x1b[31mred", "../../X", "/", "a/", "~", "-", "--", "=", "name=", "{}"),
    *("[" * 2000, "1,2,,", "1x", "x1", "99999999999x1", "8GiB", "9" * 400 + "GiB", "0B", "٣GiB"),
)
"""What no option takes, but for a few."""

_QUICK = (
    "run",
    "show",
    "flops",
    "inspect",
    "build",
    "bench",
    "eval",
    "compare",
    "deploy",
    "methods",
    "models",
    "targets",
)
_LEFT_OUT = {
    "verbose",
    "output",
    "html",
    "chart",
    "predictions",
    "triton",
    "page",
    "timing_cache",
    "plan_only",
    "config",
    "graph",
}


def run(seconds: float, seed: int) -> list[Row]:
    """Give one command after the other what it doesn't expect."""
    import runtime_fixtures

    rng, rows = random.Random(seed), Rows("command lines")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        bundle = runtime_fixtures.make_bundle(home / "whole", keep=4).path
        picture = runtime_fixtures.save_picture(home / "picture.png", 3)
        for number in while_time_lasts(seconds, at_least=24):
            if number % 3 == 0:
                kind, words, must_refuse = _checkpoint(rng, home / "model")
            elif number % 3 == 1:
                kind, words, must_refuse = _questions(rng, bundle, picture, home / "asked.jsonl")
            else:
                kind, words, must_refuse = _options(rng, bundle, picture)
            fault = fault_of(called := call(*words), must_refuse=must_refuse)
            shown = " ".join(str(word)[:40] for word in words)
            rows[kind].count(fault, f"{shown!r}: {called.code} {called.err[-300:]!r}")
    return rows.list()


def _options(rng: random.Random, bundle: Path, picture: Path) -> tuple[str, list[Any], bool]:
    """Return a command that is right but for one option."""
    from lmmprune.compiler.cli import app

    name = rng.choice(_QUICK)
    asked = ["--image", picture, "--prompt", "hi"]
    words: list[Any] = {
        "run": ["run", bundle, *asked, "--max-new-tokens", "2"],
        "show": ["show", bundle, "--image", picture, "-o", bundle.parent / "d.png", "--force"],
        "bench": ["bench", bundle, *asked, "--rounds", "2", "--new-tokens", "2", "--no-memory"],
        "eval": ["eval", bundle, "--data", bundle.parent / "none.jsonl"],
        "compare": ["compare", bundle, bundle, "--data", bundle.parent / "none.jsonl"],
        "deploy": ["deploy", bundle, "-o", bundle.parent / "board"],
    }.get(name, [name, bundle] if name in ("flops", "inspect", "build") else [name])
    command = app.get_command(click.Context(app), name)
    assert command is not None
    options = [one for one in command.params if isinstance(one, click.Option) and one.name not in _LEFT_OUT]
    option = rng.choice(options)
    given = [option.opts[-1]] if option.is_flag else [option.opts[-1], rng.choice(ODD_WORDS)]
    if not option.is_flag and option.opts[-1] in words:
        words[words.index(option.opts[-1]) + 1] = given[1]
    elif rng.random() < 0.1:
        words = [name, rng.choice(ODD_WORDS), *words[2:]]
    else:
        words += given
    return "an option", words, False


def _questions(rng: random.Random, bundle: Path, picture: Path, file: Path) -> tuple[str, list[Any], bool]:
    """Return an evaluation with damaged questions."""
    row = {"image": picture.name, "prompt": "hi", "answer": "x", "kind": "a"}
    if rng.random() < 0.5:
        other, _ = damaged({"row": row}, rng)
        text = json.dumps(other.get("row"))
    elif rng.random() < 0.5:
        text = rng.choice(TEXTS)
    else:
        text = damaged_bytes(json.dumps(row).encode(), rng)[0].decode("latin-1")
    file.write_text(text, encoding="utf-8")
    return "questions", ["eval", bundle, "--data", file, "--max-new-tokens", "2"], False


def _checkpoint(rng: random.Random, folder: Path) -> tuple[str, list[Any], bool]:
    """Return a command that reads a damaged checkpoint."""
    from lmmprune.models.registry import tiny_llava_dir

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tiny_llava_dir(), folder, ignore=shutil.ignore_patterns("calib", "examples"))
    file = folder / "config.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    if rng.random() < 0.2:
        file.write_text(rng.choice(TEXTS), encoding="utf-8")
    elif rng.random() < 0.5:
        part = rng.choice((raw["text_config"], raw["vision_config"], raw))
        name = rng.choice([name for name, value in part.items() if isinstance(value, int)] or ["hidden_size"])
        part[name] = rng.choice((0, -1, -(2**31), 10**9, 10**30, 0.5, "3", None, [], True))
        file.write_text(json.dumps(raw), encoding="utf-8")
    else:
        file.write_text(json.dumps(damaged({"config": raw}, rng)[0].get("config")), encoding="utf-8")
    return "config.json of a checkpoint", ["flops", "--model", folder, "--keep", "9"], False
