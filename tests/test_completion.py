"""What the shell completes, through click's own protocol, and that nothing heavy is imported for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from lmmprune.compiler.build.architectures import NVIDIA
from lmmprune.compiler.cli import COMMANDS, app
from lmmprune.compiler.targets.boards import JETPACKS
from lmmprune.compiler.targets.targets import names
from lmmprune.errors import MissingExtraError
from lmmprune.models.aliases import ALIASES
from lmmprune.models.registry import FAMILIES
from lmmprune.passes.methods import METHODS

SOURCE = Path(__file__).parents[1] / "src"


def completed(*words: str) -> list[str]:
    """Return what is offered for the last word."""
    shell = ShellComplete(app, {}, "lmmprune", "_LMMPRUNE_COMPLETE")
    return [item.value for item in shell.get_completions([*words[:-1]], words[-1])]


def test_commands_and_options() -> None:
    assert completed("") == list(COMMANDS)
    assert completed("e") == ["export", "eval"]
    eight = ["--int8-weights-only", "--int8-dynamic", "--int8-policy", "--int8-budget", "--int8-vision"]
    assert completed("export", "--int8-") == eight
    assert completed("export", "--dtype", "float") == ["float32", "float16"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("export", "--method"), METHODS),
        (("rewrite", "x.onnx", "--method"), METHODS),
        (("methods",), METHODS),
        (("export", "--model"), ALIASES),
        (("models",), [*ALIASES, *FAMILIES]),
        (("export", "--target"), names()),
        (("targets",), names()),
        (("build", "out", "--arch"), NVIDIA),
        (("deploy", "out", "--for"), JETPACKS),
    ],
)
def test_names(words: tuple[str, ...], offered: object) -> None:
    expected = sorted(offered)  # type: ignore[call-overload]  # any collection of names
    assert completed(*words, "") == expected
    first = expected[0][:3]
    assert completed(*words, first) == [name for name in expected if name.startswith(first)]


def test_the_last_name_of_a_list() -> None:
    assert completed("study", "--methods", "fastv,to") == ["fastv,tome"]
    assert completed("study", "--methods", "fas") == ["fastv"]


def test_a_directory_is_the_shells_to_complete() -> None:
    shell = ShellComplete(app, {}, "lmmprune", "_LMMPRUNE_COMPLETE")
    (item,) = shell.get_completions(["export", "--model"], "./mod")
    assert (item.type, item.value) == ("dir", "./mod")


def test_a_base_install_completes_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingExtraError("this needs the package 'onnx_ir'")

    monkeypatch.setattr("lmmprune.passes.methods.find_methods", missing)
    assert completed("export", "--method", "") == []
    assert "ort-cpu" in completed("export", "--target", "o")


def test_what_is_given_already_stays_out_of_the_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a file that isn't there, nor a variable of no option, nor a repeated option ends a completion."""
    monkeypatch.setenv("LMMPRUNE_EXPORT_NOTHING", "1")
    words = ("export", "--config", str(tmp_path / "none.toml"), "--method", "a", "--method", "fast")
    assert completed(*words) == ["fastv"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shells_get_their_script(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lmmprune"],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "_LMMPRUNE_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=False,
    )
    if shell == "bash" and "Bash" in done.stderr:
        pytest.skip("no new Bash here")
    assert "_lmmprune_completion" in done.stdout
    assert f"_LMMPRUNE_COMPLETE={shell}_complete" in done.stdout


def test_completion_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys\n"
        "from lmmprune.compiler.cli import main\n"
        "try:\n    main([])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'onnxruntime', 'tensorrt'} & {*sys.modules}\n"
        "print(sorted(heavy), file=sys.stderr)\n"
    )
    for words in ("lmmprune export --method ", "lmmprune export --model ", "lmmprune targets ", "lmmprune "):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "PYTHONPATH": str(SOURCE),
                "_LMMPRUNE_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(len(words.split())),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert len(done.stdout.splitlines()) > 5, words
        assert done.stderr.strip() == "[]", words
