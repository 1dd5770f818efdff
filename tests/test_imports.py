"""The base install is the run-time: what a command imports is checked in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import runtime_fixtures as fx

HEAVY = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy", "PIL", "tokenizers", "rich"}
EXPORT_ONLY = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "optimum", "matplotlib", "skimage", "sklearn"}
CODE = """
import json, sys
from lmmprune.compiler.cli import main
try:
    main(json.loads(sys.argv[1]))
except SystemExit as end:
    code = end.code
print("\\n" + json.dumps([code, sorted({name.split(".")[0] for name in sys.modules})]))
"""


def imported(*arguments: object) -> set[str]:
    """Run a command in a fresh process and return the top-level modules that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps([str(argument) for argument in arguments])],
        capture_output=True,
        text=True,
        check=True,
    )
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return set(modules)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imports")
    fx.make_bundle(folder / "out", keep=4)
    fx.save_picture(folder / "p.png", 1)
    row = {"image": "p.png", "prompt": "hi", "answer": "x"}
    (folder / "q.jsonl").write_text(json.dumps(row))
    return folder


@pytest.mark.parametrize("arguments", [("--help",), ("--version",)])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert imported(*arguments) & (HEAVY | EXPORT_ONLY) == set()


@pytest.mark.parametrize("command", ["run", "bench", "eval", "show"])
def test_help_of_the_run_time_commands_imports_nothing_heavy(command: str) -> None:
    assert imported(command, "--help") & (HEAVY | EXPORT_ONLY) == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "out", "--image", "p.png", "--prompt", "hi", "--stats"),
        ("run", "out", "--image", "p.png", "--prompt", "hi", "--json"),
        ("bench", "out", "--image", "p.png", "--prompt", "hi", "--rounds", "2", "--new-tokens", "2"),
        ("eval", "out", "--data", "q.jsonl"),
        ("show", "out", "--image", "p.png", "-o", "x.png"),
    ],
)
def test_run_time_needs_no_export_package(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(folder)
    modules = imported(*arguments)
    assert "onnxruntime" in modules, "the command did run"
    assert modules & EXPORT_ONLY == set()
    assert modules & {"lmmprune"} == {"lmmprune"}
    assert modules & {"compiler", "passes", "models"} == set(), "the package's folders don't leak as top-level names"
