"""The base install is the run-time: what a command imports is checked in a fresh process."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import runtime_fixtures as fx

import lmmprune

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


@pytest.mark.parametrize("command", ["run", "serve", "bench", "eval", "show"])
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


UNIX_ONLY = {"fcntl", "grp", "pwd", "resource", "termios"}


def imports_at_import(file: Path) -> set[str]:
    """Return the top-level modules that importing a file imports: what stands in functions is left out."""
    found, waiting = set(), list(ast.parse(file.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return found


def test_no_module_needs_unix_to_be_imported() -> None:
    root = Path(lmmprune.__file__).resolve().parents[2]
    files = [file for folder in ("compiler", "passes", "models", "src") for file in (root / folder).rglob("*.py")]
    assert len(files) > 300
    assert {str(file): found for file in files if (found := imports_at_import(file) & UNIX_ONLY)} == {}


WITHOUT = """
import filelock, psutil, subprocess, sys  # these choose by the system
for name in sys.argv[1].split(","):
    sys.modules[name] = None
import lmmprune.compiler.cli.run, lmmprune.compiler.runtime.runtime, lmmprune.compiler.backends.onnxruntime
import lmmprune.compiler.build.build, lmmprune.compiler.measure.bench, lmmprune.compiler.study.folder
import lmmprune.compiler.triton.repository, lmmprune.compiler.deploy.deploy, lmmprune.compiler.bundle.write_bundle
"""


def test_the_run_time_is_imported_without_unix() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT, ",".join(UNIX_ONLY)], check=True)


BLOCKED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "starlette"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from lmmprune.compiler.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "words",
    [
        ("export", "--model", "tiny-llava", "-o", "{new}"),
        ("verify", "{out}"),
        ("rewrite", "in.onnx", "-o", "{new}"),
        ("study", "--model", "tiny-llava", "-o", "{new}"),
    ],
    ids=lambda words: words[0],
)
def test_what_needs_the_extra_says_so_on_a_base_install(words: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    arguments = [word.format(new=tmp_path / "new", out=folder / "out") for word in words]
    command = [sys.executable, "-c", BLOCKED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "pip install 'lmmprune[export]'" in done.stderr


def test_serving_says_which_extra_it_needs(folder: Path) -> None:
    command = [sys.executable, "-c", BLOCKED, "serve", str(folder / "out"), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "pip install 'lmmprune[serve]'" in done.stderr
