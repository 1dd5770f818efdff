"""Command lines with absurd numbers, names and texts, and the files that commands read, damaged."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Callable
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
_LONG = ("export", "tune", "study", "serve")
"""What would take minutes, or never ends: something that it needs isn't there, so that all of it ends in a line."""
_LEFT_OUT = {
    *("verbose", "output", "html", "chart", "predictions", "triton", "page", "timing_cache", "plan_only", "config"),
    *("graph", "ray"),
}
_ENDLESS = ("--rounds", "--new-tokens")  # a million are a million


Try = tuple[str, list[Any], bool]
"""What was damaged, the command, and whether it must refuse."""


def run(seconds: float, seed: int) -> list[Row]:
    """Give one command after the other what it doesn't expect."""
    import runtime_fixtures

    rng, rows = random.Random(seed), Rows("command lines")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        bundle = runtime_fixtures.make_bundle(home / "whole", keep=4).path
        picture = runtime_fixtures.save_picture(home / "picture.png", 3)
        without = _without_weights(home / "without")
        tries: tuple[Callable[[], Try], ...] = (
            lambda: _checkpoint(rng, home / "model"),
            lambda: _questions(rng, bundle, picture, home / "asked.jsonl"),
            lambda: _options(rng, bundle, picture),
            lambda: _long(rng, without),
            lambda: _schedule(rng, without, home / "schedule.json"),
            lambda: _beside(rng, without, home / "model"),
        )
        for number in while_time_lasts(seconds, at_least=36):
            kind, words, must_refuse = tries[number % len(tries)]()
            fault = fault_of(called := call(*words), must_refuse=must_refuse)
            shown = " ".join(str(word)[:40] for word in words)
            rows[kind].count(fault, f"{shown!r}: {called.code} {called.err[-300:]!r}")
    return rows.list()


def _options(rng: random.Random, bundle: Path, picture: Path) -> Try:
    """Return a command that is right but for one option."""
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
    return "an option", _with_odd(rng, words), False


def _long(rng: random.Random, model: Path) -> Try:
    """Return a long command that is wrong in one option, and can't begin."""
    name, data = rng.choice(_LONG), model.parent / "none.jsonl"
    words: list[Any] = {
        "export": ["export", "--model", model, "--keep", "36", "-o", model.parent / "out"],
        "tune": ["tune", "--model", model, "--data", data, "--max-loss", "1", "-o", model.parent / "tuned"],
        "study": ["study", "--model", model, "--data", data, "-o", model.parent / "study"],
        "serve": ["serve", model.parent / "none"],
    }[name]
    return f"an option of {name}", _with_odd(rng, words), True


def _with_odd(rng: random.Random, words: list[Any]) -> list[Any]:
    """Return a command with something odd in the place of an option's value or its argument, or as one more option."""
    from lmmprune.compiler.cli import app

    command = app.get_command(click.Context(app), words[0])
    assert command is not None
    options = [one for one in command.params if isinstance(one, click.Option) and one.name not in _LEFT_OUT]
    option = rng.choice(options)
    name, value = option.opts[-1], rng.choice(ODD_WORDS)
    if name in _ENDLESS and value == "1000000":
        value = "0"
    if not option.is_flag and name in words:
        return [*words[: (place := words.index(name) + 1)], value, *words[place + 1 :]]
    if rng.random() < 0.1:
        return [words[0], value, *words[2:]]
    return [*words, name] if option.is_flag else [*words, name, value]


def _questions(rng: random.Random, bundle: Path, picture: Path, file: Path) -> Try:
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


def _schedule(rng: random.Random, model: Path, file: Path) -> Try:
    """Return a command by a damaged schedule."""
    places = rng.choice((["llm_input_1", "llm_input_3"], ["vision_output"], ["llm_layer_2", "llm_input_2"]))
    counts = sorted((rng.randrange(1, 144) for _ in places), reverse=True)
    raw: dict[str, Any] = dict(zip(places, counts, strict=True))
    if rng.random() < 0.3:
        text = rng.choice(TEXTS)
    elif rng.random() < 0.3:
        text = damaged_bytes(json.dumps(raw).encode(), rng)[0].decode("latin-1")
    else:
        text = json.dumps(damaged({"it": raw}, rng)[0].get("it"))
    file.write_text(text, encoding="utf-8")
    method = rng.choice(("fastv", "sparsevlm", "random", "cls", "freepruner"))
    if rng.random() < 0.5:
        return "--schedule", ["flops", "--model", "tiny-llava", "--method", method, "--schedule", file], False
    words = ["export", "--model", model, "--method", method, "--schedule", file, "-o", model.parent / "out"]
    return "--schedule", words, True


def _beside(rng: random.Random, model: Path, folder: Path) -> Try:
    """Return an export of a checkpoint whose other files are damaged."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder)
    file = rng.choice(sorted(path for path in folder.iterdir() if path.suffix in (".json", ".jinja")))
    if rng.random() < 0.5 or file.suffix != ".json":
        file.write_bytes(damaged_bytes(file.read_bytes(), rng)[0])
    elif rng.random() < 0.3:
        file.write_text(rng.choice(TEXTS), encoding="utf-8")
    else:
        raw = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(damaged({"it": raw}, rng)[0].get("it")), encoding="utf-8")
    words = ["export", "--model", folder, "--keep", "36", "-o", folder.parent / "out"]
    return f"{file.name} of a checkpoint", words, True


def _without_weights(folder: Path) -> Path:
    """Write a checkpoint that lacks its weights: all else is looked at, and nothing is exported."""
    from lmmprune.models.registry import tiny_llava_dir

    ignored = shutil.ignore_patterns("calib", "examples", "*.safetensors", "*.py", "__pycache__")
    shutil.copytree(tiny_llava_dir(), folder, ignore=ignored)
    return folder


def _checkpoint(rng: random.Random, folder: Path) -> Try:
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
