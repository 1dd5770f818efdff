"""A plan, a board's folder and ``build`` make the same engines; a plan's commands work where they are pasted."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from runtime_fixtures import make_bundle
from test_power import AGX, NANO_SUPER, Board

from lmmprune.compiler.backends import load_tensorrt
from lmmprune.compiler.build import build as module
from lmmprune.compiler.build import compile_engine as tensorrt
from lmmprune.compiler.build.build import build
from lmmprune.compiler.build.options import BuildOptions
from lmmprune.compiler.build.profiles import Profile
from lmmprune.compiler.bundle.bundle import Bundle
from lmmprune.compiler.deploy.deploy import deploy
from lmmprune.compiler.deploy.write_plan import write_plan
from lmmprune.compiler.measure.read_result import import_result
from lmmprune.compiler.targets import machine
from lmmprune.compiler.targets.targets import TARGETS, resolve
from lmmprune.compiler.triton.repository import write_repository

FAKE = Path(__file__).parent / "fake_trtexec.py"
Asked = dict[str, tuple[list[dict[str, dict[str, list[int]]]], dict[str, Any]]]


def asked_of_builder(
    bundle: Bundle, target: str, monkeypatch: pytest.MonkeyPatch, *, arch: str = "sm87", **how: Any
) -> Asked:
    """Return what the builder's Python API is asked, by component: shapes of every profile, and the options."""
    found: Asked = {}

    class Enough(Exception):
        pass

    def take(_: Any, graph: Path, *, profiles: list[Profile], options: BuildOptions, **__: Any) -> None:
        found[graph.stem] = (
            [
                {flag: {name: list(shapes[i]) for name, shapes in one.shapes.items()} for i, flag in enumerate(FLAGS)}
                for one in profiles
            ],
            options.recorded(),
        )
        raise Enough

    gpu = machine.Gpu(name="board", arch=arch, driver=None, memory=None)
    monkeypatch.setattr(machine, "gpus", lambda: (gpu,))
    monkeypatch.setattr(load_tensorrt, "load", lambda _: SimpleNamespace(__name__="tensorrt", __version__="10.3"))
    monkeypatch.setattr(tensorrt, "build_engine", take)
    monkeypatch.setattr(module, "lacking_memory", lambda *_: None)
    for component in ("vision", "decoder"):
        with pytest.raises(Enough):
            build(bundle.path, target, components=[component], **how)
    return found


FLAGS = ("minShapes", "optShapes", "maxShapes")


def asked_of_trtexec(lines: list[str]) -> Asked:
    """Return the same of the program's command lines."""
    found: Asked = {}
    for line in lines:
        words = [word.removeprefix("--").partition("=") for word in shlex.split(line)]
        graph = next((value for name, _, value in words if name == "onnx"), None)
        if graph is None:
            continue
        profiles: list[dict[str, dict[str, list[int]]]] = []
        options: dict[str, Any] = {}
        for name, _, value in words:
            if name == "profile":
                profiles.append({})
            elif name in FLAGS:
                pairs = (entry.split(":") for entry in value.split(","))
                profiles[-1][name] = {tensor: [int(n) for n in shape.split("x")] for tensor, shape in pairs}
            elif name == "memPoolSize":
                options["workspace"] = int(float(value.removeprefix("workspace:").removesuffix("M")) * 2**20)
            elif name in ("refit", "versionCompatible"):
                options["version_compatible" if name == "versionCompatible" else name] = True
        found[Path(graph).stem] = (profiles, options)
    return found


@pytest.mark.parametrize("board", [alias for target in TARGETS.values() for alias in target.boards])
def test_every_way_to_an_engine_takes_the_same(board: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = resolve(board).name
    bundle = make_bundle(tmp_path / "b", keep=8, dtype="float16", target=target)
    arch = resolve(board).boards[board]
    on_the_board = asked_of_builder(bundle, board, monkeypatch, arch=arch)
    assert on_the_board["decoder"][1] == {"workspace": 2**30}
    assert len(on_the_board["decoder"][0]) == 2
    assert asked_of_builder(bundle, target, monkeypatch, arch=arch) == on_the_board
    for name in (board, target):
        plan = write_plan([bundle.path], name, tmp_path / f"plan-{name}")
        assert asked_of_trtexec(list(plan.commands)) == on_the_board
    folder = deploy(bundle.path, board, tmp_path / "folder").folder
    steps = [line.split("\t")[4:] for line in (folder / "steps.tsv").read_text().splitlines() if "--onnx=" in line]
    assert asked_of_trtexec([shlex.join(words) for words in steps]) == on_the_board
    served = write_repository(bundle, tmp_path / "served").path
    assert asked_of_trtexec((served / "build_engines.sh").read_text().splitlines()) == on_the_board


def test_options_reach_every_way_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "b", keep=8, dtype="float16", target="tensorrt-10.3")
    options = BuildOptions(workspace=2**28, version_compatible=True, refit=True)
    on_the_board = asked_of_builder(bundle, "jetson-orin-jp6", monkeypatch, options=options, max_prompt=100)
    assert on_the_board["decoder"][1] == {"workspace": 2**28, "version_compatible": True, "refit": True}
    assert on_the_board["decoder"][0][0]["maxShapes"]["input_ids"] == [1, 100]
    plan = write_plan([bundle.path], "jetson-orin-jp6", tmp_path / "plan", options=options, max_prompt=100)
    assert asked_of_trtexec(list(plan.commands)) == on_the_board
    # The folder's README builds with what its plan builds with.
    folder = deploy(bundle.path, "jetson-orin-jp6", tmp_path / "folder", workspace=2**28, max_prompt=100).folder
    line = next(line for line in (folder / "README.md").read_text().splitlines() if "lmmprune build" in line)
    assert line.split("lmmprune build ")[1] == "b --target jetson-orin-jp6 --max-prompt 100 --workspace 256MiB"
    assert "--memPoolSize=workspace:256M" in (folder / "steps.tsv").read_text()


@pytest.mark.parametrize("on_path", [True, False])
def test_a_plans_commands_work_when_they_are_pasted(tmp_path: Path, on_path: bool) -> None:
    bundle = make_bundle(tmp_path / "it's mine", keep=8, dtype="float16", target="tensorrt-10.3")
    plan = write_plan([bundle.path], "jetson-orin-jp6", tmp_path / "plan")
    program = tmp_path / "bin" / "trtexec"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {FAKE} "$@"\n')
    program.chmod(0o755)
    readme = (plan.folder / "README.md").read_text()
    pasted = [line.removeprefix("    ") for line in readme.split("in one shell:\n")[1].splitlines() if line]
    assert pasted == list(plan.commands)
    path = f"{program.parent}:/usr/bin:/bin" if on_path else "/usr/bin:/bin"
    # JetPack's place can't be written here: its name in the text is replaced by another one.
    text = "\n".join(pasted).replace("/usr/src/tensorrt/bin/trtexec", str(program))
    for shell in ("bash", "sh"):
        done = subprocess.run(
            [shell, "-e"], input=text, env={"PATH": path}, cwd=plan.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("&&&& PASSED") == plan.steps == 5
        assert (plan.folder / "engines" / "it-s-mine" / "decoder.engine").is_file()


@pytest.mark.parametrize(
    ("modes", "present", "warned"), [(NANO_SUPER, 0, True), (NANO_SUPER, 2, False), (AGX, 0, False)]
)
def test_mode_clocks_and_temperatures_stand_beside_the_times(
    modes: dict[int, str], present: int, warned: bool, tmp_path: Path
) -> None:
    board = Board(tmp_path, modes, present)
    board.program("trtexec", f'#!/bin/sh\nexec {sys.executable} -S -E {FAKE} "$@"\n')
    bundle = make_bundle(tmp_path / "b", keep=8, dtype="float16", target="tensorrt-10.3")
    plan = write_plan([bundle.path], "jetson-orin-jp6", tmp_path / "plan").folder
    done = subprocess.run(
        ["sh", "measure.sh", "-r", "2", "-s", "0"],
        env=board.environment,
        cwd=plan,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ("sudo sh power.sh" in done.stderr) == warned
    power = json.loads((plan / "result.json").read_text())["power"]
    for state in (power["before"], power["after"]):
        assert (state["mode"], state["mode_id"]) == (modes[present], present)
        assert state["clocks"]["17000000.gpu"] == {"mhz": 1020, "max_mhz": 1020}
        assert state["temperatures"]["cpu-thermal"] == 48.312
    report = import_result(plan / "result.json").report
    assert report.where.endswith(f", power mode {modes[present]}, 48 -> 48 degrees C")


def test_a_machine_without_nvpmodel_is_timed_too(tmp_path: Path) -> None:
    program = tmp_path / "trtexec"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {FAKE} "$@"\n')
    program.chmod(0o755)
    bundle = make_bundle(tmp_path / "b", keep=8, dtype="float16", target="tensorrt-10.3")
    plan = write_plan([bundle.path], "tensorrt-10.3", tmp_path / "plan").folder
    environment = {"PATH": os.pathsep.join([str(tmp_path), "/usr/bin", "/bin"]), "SYSFS": str(tmp_path / "nothing")}
    done = subprocess.run(
        ["sh", "measure.sh", "-r", "2", "-s", "0"],
        env=environment,
        cwd=plan,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    empty = {"mode": None, "mode_id": None, "clocks": {}, "temperatures": {}}
    assert json.loads((plan / "result.json").read_text())["power"] == {"before": empty, "after": empty}
    assert "power" not in import_result(plan / "result.json").report.where
