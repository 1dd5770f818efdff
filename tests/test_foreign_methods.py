"""Methods from outside: the README's example as an installed package and as a file, and what can be wrong with one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from towers import Tower, session

from lmmprune.compiler.cli import main
from lmmprune.errors import InputError
from lmmprune.facts import Facts
from lmmprune.passes.methods import get_method
from lmmprune.passes.reduce.reduce_vision import ReduceVision

EXAMPLE = Path(__file__).parents[1] / "examples" / "longest"


def test_a_file_brings_a_method() -> None:
    tower = Tower(patches=9)
    facts = Facts(tokens=9, grid=(3, 3), encoder_layers=3, decoder_layers=2, has_cls=True)
    model = tower.graph()
    method = get_method("longest", {"p": "1"}, file=EXAMPLE / "longest.py")
    ReduceVision(method="longest", stages=method.plan(facts, 4), grid=(3, 3))(model)
    found = session(model)({"pixel_values": tower.inputs()})
    lengths = np.abs(tower.hidden()[0, tower.has_cls :]).sum(axis=1)
    assert sorted(np.argsort(-lengths)[:4]) == found["kept_indices"][0].tolist()
    assert method.parameters == {"p": 1}


def test_an_installed_package_brings_a_method(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "longest", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(tmp_path / "site"), str(tmp_path / "longest")], check=True)
    paths = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    cli = [sys.executable, "-m", "lmmprune.compiler.cli"]

    def run(*words: str) -> str:
        done = subprocess.run(
            [*cli, *words], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True
        )
        return done.stdout

    rows = {row["name"]: row for row in json.loads(run("methods", "--json"))}
    assert rows["longest"]["parameters"] == {"p": 2}
    bundle = str(tmp_path / "bundle")
    said = json.loads(
        run("export", "--model", "tiny-llava", "--method", "longest", "--keep", "40", "-o", bundle, "--json")
    )
    site = {"site": "vision_output", "tokens_in": 144, "tokens_out": 40, "text_removed": 0, "kept": "kept_indices"}
    assert said["sites"] == [site]


BROKEN = {
    "import nothing_of_that_name": "ModuleNotFoundError",
    "x = (": "SyntaxError",
    "x = 1": "no subclass",
    "from lmmprune.passes.methods import Method\nclass A(Method):\n    reference = exactness = 'x'": "states no name",
    "from lmmprune.passes.methods import Method\nclass A(Method):\n    name = 'cls'\n    reference = exactness = 'x'": (
        "two methods are called 'cls'"
    ),
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_is_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(InputError, match=BROKEN[text]):
        get_method("cls", file=path)
    words = ["export", "--model", "tiny-llava", "--method-file", str(path), "-o", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        get_method("cls", file=tmp_path / "none.py")
