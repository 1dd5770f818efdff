"""What the command line says of itself: help at 80 columns, groups of options, names that changed, and -v and -q."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import runtime_fixtures as fx

from lmmprune.compiler.cli import COMMANDS, RENAMED, app
from lmmprune.compiler.cli.command import Option

Cli = Callable[..., tuple[int, str, str]]


def command_of(name: str) -> click.Command:
    context = app.make_context("lmmprune", [], resilient_parsing=True)
    found = app.get_command(context, name)
    assert found is not None
    return found


def sections(text: str) -> dict[str, list[str]]:
    """Return the options of each section of a help text, by the first word of each."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in text.splitlines():
        if line and not line.startswith(" "):
            title = line.rstrip(":")
        elif match := re.match(r"  (-[\w-]+)", line):
            found.setdefault(title, []).append(match[1])
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_written_for_80_columns(name: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = cli(name, "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "\b" not in out
    assert "\\b" not in out
    assert "INTEGER RANGE" not in out
    for option in command_of(name).params:
        if isinstance(option, click.Option) and not option.hidden:
            text = option.help or ""
            assert re.search(r"[.\]]$", text), f"{option.opts}: {text!r} is no whole sentence"
            assert not re.search(r"[^.]  \[default", text), f"{option.opts}: {text!r}"


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("export", ["Model", "Pruning", "INT8", "INT4", "Target", "Output", "General"]),
        ("rewrite", ["Model", "Pruning", "Target", "Output", "General"]),
        ("study", ["Model", "Variants", "Questions", "Timing", "Target", "Output", "General"]),
        ("build", ["Engines", "Plan", "Output", "General"]),
        ("show", ["Options"]),
    ],
)
def test_options_stand_in_groups(name: str, groups: list[str], cli: Cli) -> None:
    found = sections(cli(name, "--help")[1])
    assert [title for title in found if title != "Usage"] == groups
    # Each option stands in one of them.
    listed = [one for rows in found.values() for one in rows]
    assert len(listed) == len({*listed}) == sum(isinstance(p, click.Option) for p in command_of(name).params) + 1
    assert (
        found[groups[-1]][-4:]
        == (["--json", "-v", "--config", "-q", "-h"] if name == "build" else ["--config", "-v", "-q", "-h"])[-4:]
    )


def test_shared_options_say_the_same_everywhere() -> None:
    texts: dict[str, set[str]] = {}
    for name in ("export", "rewrite", "study", "build", "bench", "run", "eval", "show"):
        for option in command_of(name).params:
            if isinstance(option, Option):
                texts.setdefault(option.opts[-1], set()).add(str(option.help))
    for shared in (
        "--method-file",
        "--set",
        "--keep",
        "--ratio",
        "--method",
        "--calib",
        "--triton",
        "--json",
        "--quiet",
    ):
        assert len(texts[shared]) == 1, texts[shared]


def test_examples_are_commands_that_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    context = app.make_context("lmmprune", [], resilient_parsing=True)
    shown = 0
    for name in COMMANDS:
        command = command_of(name)
        example = getattr(command, "example", None)
        if example is None:
            continue
        shown += 1
        program, called, *words = shlex.split(example)
        assert (program, called) == ("lmmprune", name)
        command.make_context(name, words, parent=context)
    assert shown >= 10


def test_the_command_alone_prints_its_help(cli: Cli) -> None:
    code, out, err = cli()
    assert (code, err) == (0, "")
    assert out == cli("--help")[1]
    for name in COMMANDS:
        assert f"\n  {name} " in out
    assert "bundle" not in [line.split()[0] for line in out.splitlines() if line.strip()]
    assert "LMMPRUNE_EXPORT_RATIO" in out
    assert "_LMMPRUNE_COMPLETE=bash_source" in out


@pytest.mark.parametrize("module", ["lmmprune", "lmmprune.compiler.cli"])
def test_the_package_runs_as_a_module(module: str, tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "src"
    done = subprocess.run(
        [sys.executable, "-m", module, "targets", "jetson-orin"],
        env={**os.environ, "PYTHONPATH": str(source)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("lmmprune: error: no target 'jetson-orin'; did you mean 'jetson-orin-jp")
    help = subprocess.run(
        [sys.executable, "-m", module, "run", "-h"],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert help.startswith("Usage: lmmprune run [OPTIONS] BUNDLE")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("export",), "missing option '--model' (see 'lmmprune export --help')"),
        (("run",), "missing argument 'BUNDLE' (see 'lmmprune run --help')"),
        (("export", "--keep"), "option '--keep' requires an argument (see 'lmmprune export --help')"),
        (("export", "--keep", "x"), "'x': expected a whole number in the digits 0 to 9"),
        (("nothing",), "no command 'nothing'; known: bench, "),
    ],
)
def test_mistakes_of_usage_are_written_as_all_others(words: tuple[str, ...], message: str, cli: Cli) -> None:
    code, out, err = cli(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert re.match(r"lmmprune: error: [a-z'-]", err)


def test_the_old_name_of_deploy_works_and_says_so(cli: Cli, tmp_path: Path) -> None:
    bundle = fx.make_bundle(tmp_path / "b", keep=8, dtype="float16", target="tensorrt-10.3")
    words = (bundle.path, "--for", "jetson-orin-jp6", "-o")
    code, out, err = cli("bundle", *words, tmp_path / "old")
    assert code == 0
    assert err.splitlines()[0] == (
        "warning: 'lmmprune bundle' is called 'lmmprune deploy' now; the next release doesn't know the old name"
    )
    code, new, err = cli("deploy", *words, tmp_path / "new")
    assert (code, "called" in err) == (0, False)
    assert new.replace("/new", "/old") == out
    assert "(see 'lmmprune deploy --help')" in cli("bundle")[2]
    assert not {*RENAMED} & {*COMMANDS}


def test_quiet_leaves_out_notes_and_keeps_warnings_and_results(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = fx.make_bundle(tmp_path / "b", keep=4)
    fx.save_picture(tmp_path / "p.png", 3)
    (tmp_path / "q.jsonl").write_text('{"image": "p.png", "prompt": "hi", "answer": "x", "kind": "k"}')
    words = ("eval", bundle.path, "--data", tmp_path / "q.jsonl")
    _, out, err = cli(*words)
    assert "image tokens" in err
    assert cli(*words, "-q") == (0, out, "")
    assert cli("-q", *words) == (0, out, "")
    assert "image tokens" in cli(*words)[2], "it holds for one call"
    monkeypatch.setenv("LMMPRUNE_QUIET", "1")
    assert cli(*words) == (0, out, "")
    # A warning and an error are no notes.
    assert "warning: 'lmmprune bundle'" in cli("-q", "bundle", "nowhere", "--for", "jetson-orin-jp6", "-o", "x")[2]
    assert cli("-q", "run", "nowhere", "--image", "x", "--prompt", "x")[2].startswith("lmmprune: error: ")
    # What was asked for is printed.
    asked = ("run", bundle.path, "--image", tmp_path / "p.png", "--prompt", "hi", "--max-new-tokens", 2, "--stats")
    assert "prefill" in cli("-q", *asked)[2]


# --- one of them in detail -------------------------------------------------------------------------------------------


def test_one_method(cli: Cli) -> None:
    import json

    code, out, _ = cli("methods", "sparsevlm")
    assert code == 0
    assert re.search(r"cut at +llm_input", out)
    assert re.search(r"layers +a list such as 2,6,15 +2,6,15", out)
    found = json.loads(cli("methods", "sparsevlm", "--json")[1])
    assert found["options"] == [{"name": "layers", "takes": "a list such as 2,6,15", "default": [2, 6, 15]}]
    assert found["summary"].startswith("Behind layers 2, 6 and 15")
    assert "Reference" not in found["summary"]
    assert "It has no parameters." in cli("methods", "tome")[1]


def test_one_method_of_a_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from lmmprune.passes.methods import Method\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Method):\n"
        "    flag: bool = True\n"
        "    most: int | None = None\n"
        "    name, reference, exactness = 'mine', 'nobody', 'exact'\n"
    )
    code, out, _ = cli("methods", "mine", "--method-file", tmp_path / "mine.py")
    assert code == 0
    assert "(its class says nothing)" in out
    assert re.search(r"flag +true or false +true\s", out)
    assert re.search(r"most +int or none +none\s", out)


def test_one_model(cli: Cli) -> None:
    import json

    out = cli("models", "llava-1.5-7b")[1]
    assert re.search(r"checkpoint +llava-hf/llava-1.5-7b-hf", out)
    assert re.search(r"size +13.2 GiB", out)
    assert re.search(r"family +llava, LLaVA-1.5", out)
    found = json.loads(cli("models", "llava-1.5-7b", "--json")[1])
    assert (found["alias"]["name"], found["family"]["name"]) == ("llava-1.5-7b", "llava")
    family = json.loads(cli("models", "llava", "--json")[1])
    assert family["family"] == found["family"]
    assert "llava-1.5-7b" in {row["name"] for row in family["aliases"]}
    assert "llava-1.5-7b" in cli("models", "llava")[1]


def test_one_target_and_one_board(cli: Cli) -> None:
    import json

    assert "TensorRT 10.3" in cli("targets", "tensorrt-10.3")[1]
    assert "board" not in cli("targets", "tensorrt-10.3")[1]
    out = cli("targets", "jetson-orin-jp6")[1]
    assert "JetPack 6.2, CUDA 12.6, Python 3.10" in out
    assert "Orin Nano 8GB (8.0 GiB)" in out
    assert "sudo apt install nvidia-jetpack" in out
    found = json.loads(cli("targets", "jetson-orin-jp6", "--json")[1])
    assert (found["name"], found["board"]["arch"]) == ("tensorrt-10.3", "sm87")
    assert "board" not in json.loads(cli("targets", "trt", "--json")[1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("methods", "fast-v"), "no method 'fast-v'; did you mean 'fastv'?"),
        (("models", "llava-1.5-7"), "no alias or family 'llava-1.5-7'; did you mean 'llava-1.5-7b'?"),
        (("models", "llva"), "did you mean 'llava'?"),
        (("targets", "tensort-11"), "no target 'tensort-11'; did you mean 'tensorrt-11'?"),
        (("methods", "fastv", "tome"), "unexpected extra argument"),
    ],
)
def test_names_that_arent_there(words: tuple[str, ...], message: str, cli: Cli) -> None:
    code, out, err = cli(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
